"""The study of extraction in a fixed world model: real runs, made small, and what the report says of them."""

from __future__ import annotations

import csv

import pytest

pytest.importorskip("dm_control")
pytest.importorskip("hydra")

from benchmarks.learning.studies import fixed_model
from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm.data import collect_dataset
from torchrl_pwm.runs.cli import command_config
from torchrl_pwm.runs.world_model import make_world_model

TASK = "pendulum-swingup"
MODEL = ("model.units=[16]", "model.latent_dim=16", "model.encoder_units=[16]")
SMALL = ("extraction.starts.count=64", "actor.units=[16]", "value.units=[16]", "extraction.batch_size=8")


@pytest.mark.filterwarnings("ignore")
def test_the_report_has_the_returns_along_the_way(tmp_path, monkeypatch):
    data = collect_dataset(TASK, tmp_path / "data", episodes=1, workers=1, progress=False)
    model = make_world_model(command_config("mt80", ["preset=mini", *MODEL]))
    save_tensors(tmp_path / "world_model.pt", {"model": model.state_dict()})
    for name, value in (("UPDATES", 4), ("EVERY", 2), ("EPISODES", 1), ("_SHOWN", (2, 4))):
        monkeypatch.setattr(fixed_model, name, value)
    monkeypatch.setattr(fixed_model, "VARIANTS", dict.fromkeys(("default", "batches of 32"), SMALL))
    monkeypatch.setattr(fixed_model, "_HEAD", ("task", "setting", "2", "4", "score", "seconds"))
    where = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
    given = ["--model", str(tmp_path / "world_model.pt"), "--data", str(data.root)]
    fixed_model.main(["run", *given, "--tasks", TASK, "--seeds", "0", "--variants", "batches of 32", *where])
    fixed_model.main(["report", *where])
    (row,) = csv.DictReader((tmp_path / "fixed_model.csv").open())
    assert (row["task"], row["setting"], row["seed"]) == (TASK, "batches of 32", "0")
    assert float(row["score"]) == pytest.approx(float(row["return"]) / 1000)
    page = (tmp_path / "fixed_model.md").read_text()
    assert f"| {float(row['return after 4']):.0f} |" in page and (tmp_path / "fixed_model.png").exists()


@pytest.mark.parametrize("variant", fixed_model.VARIANTS)
def test_each_setting_differs_from_the_default_and_has_a_folder_that_hydra_takes(tmp_path, variant):
    folder = f"folder={fixed_model._place(tmp_path, TASK, variant)}"
    settings = fixed_model.VARIANTS[variant]
    config, default = (command_config("mt80", ["preset=mini", folder, *line]) for line in (settings, []))
    assert (config == default) is (variant == fixed_model.DEFAULT)


def test_a_model_that_is_not_there_is_refused_before_anything_starts(tmp_path):
    data = collect_dataset(TASK, tmp_path / "data", episodes=1, workers=1, progress=False)
    line = ["run", "--data", str(data.root), "--tasks", TASK, "--folder", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match="no world model in"):
        fixed_model.main([*line, "--model", str(tmp_path / "world_model.pt")])
    assert not (tmp_path / "runs").exists()
