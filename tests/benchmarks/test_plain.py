"""The study of plain extraction: real runs of one task, made small, and what the report says of them."""

from __future__ import annotations

import csv

import pytest
import torch

pytest.importorskip("dm_control")
pytest.importorskip("hydra")

from benchmarks.learning.studies import plain
from torchrl_pwm.data import collect_dataset
from torchrl_pwm.runs.cli import command_config
from torchrl_pwm.runs.world_model import make_world_model

TASK = "pendulum-swingup"
SMALL = ("world_model.iterations=2", "world_model.batch_size=8", "extraction.iterations=2", "extraction.batch_size=8")
SMALL += ("extraction.starts.count=64", "extraction.eval_interval=10", "extraction.eval_episodes=1", "rounds.count=1")
SMALL += ("rounds.episodes.dm_control=1", "rounds.noise=[0.2]", "rounds.iterations=1", "rounds.policy_iterations=1")
SMALL += ("rounds.eval_episodes=1", "evaluation.episodes=1", "model.units=[16]", "model.latent_dim=16")
SMALL += ("model.encoder_units=[16]", "actor.units=[16]", "value.units=[16]")


@pytest.mark.filterwarnings("ignore")
def test_the_report_has_each_run_with_its_rounds_beside_the_data(tmp_path, monkeypatch, capsys):
    data = collect_dataset(TASK, tmp_path / "data", episodes=2, workers=1, progress=False)
    monkeypatch.setattr(plain, "VARIANTS", {"one head": (*SMALL, "model.num_heads=1")})
    where = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
    line = ["run", "--data", str(data.root), "--tasks", TASK, "--seeds", "0", *where]
    plain.main([*line, "--variants", "one head"])
    plain.main(["report", *where])
    (row,) = csv.DictReader((tmp_path / "plain.csv").open())
    assert (row["variant"], row["seed"], len(row["rounds"].split())) == ("one head", "0", 2)
    assert row["kept"] in ("0", "1")
    assert float(row["score"]) == pytest.approx(float(row["return"]) / 1000)
    returns = data.returns.reshape(2, -1).sum(1)
    page = (tmp_path / "plain.md").read_text()
    assert f"{returns.mean():.0f} ({returns.max():.0f})" in page and (tmp_path / "plain.png").exists()


@pytest.mark.parametrize("variant", plain.VARIANTS)
def test_each_variant_differs_from_the_default_in_a_run_that_can_be_built(variant):
    line = ["preset=grounded", "data=open", "data.root=x", f"task={TASK}"]
    config, default = command_config("mt80", [*line, *plain.VARIANTS[variant]]), command_config("mt80", line)
    with torch.device("meta"):
        make_world_model(config)
    assert (config == default) is (variant == plain.DEFAULT)


def test_data_of_other_tasks_are_refused_before_anything_starts(tmp_path):
    data = collect_dataset(TASK, tmp_path / "data", episodes=1, workers=1, progress=False)
    with pytest.raises(SystemExit, match="cup-catch"):
        plain.main(["run", "--data", str(data.root), "--tasks", "cup-catch", "--folder", str(tmp_path / "runs")])
