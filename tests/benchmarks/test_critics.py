"""The study of the critics: a real extraction, made small, and what the report says of it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("dm_control")
pytest.importorskip("hydra")

from benchmarks.learning.studies import critics
from tests.benchmarks.test_plain import SMALL, TASK
from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm.data import collect_dataset
from torchrl_pwm.runs.cli import command_config
from torchrl_pwm.runs.world_model import make_world_model

# what the study's model has
SMALL = tuple(entry for entry in SMALL if not entry.startswith("extraction.iterations"))


@pytest.mark.filterwarnings("ignore")
def test_the_report_has_return_and_value_of_each_variant(tmp_path, monkeypatch, capsys):
    data = collect_dataset(TASK, tmp_path / "data", episodes=2, workers=1, progress=False)
    config = command_config("mt80", ["preset=grounded", "data=open", "model.num_heads=2", *SMALL])
    model = tmp_path / "world_model.pt"
    save_tensors(model, {"model": make_world_model(config).state_dict()})
    for name, value in {"UPDATES": 4, "EVERY": 2, "STEPS": 6, "TAIL": 2}.items():
        monkeypatch.setattr(critics, name, value)
    monkeypatch.setattr(critics, "VARIANTS", {"alone": SMALL, "going on": (*SMALL, "stepper.continued=0.75")})
    where = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
    critics.main(["run", str(model), "--data", str(data.root), "--tasks", TASK, "--seeds", "0", *where])
    critics.main(["report", *where])
    rows = json.loads((tmp_path / "runs" / TASK / "going_on" / "seed-0.json").read_text())
    assert [row["update"] for row in rows] == [0, 2, 4] and "loss_value" in rows[-1]
    page = (tmp_path / "critics.md").read_text()
    assert f"| {TASK} | going on | " in page and f"**{rows[-1]['return']:.1f}**" in page
    assert (tmp_path / "critics.png").exists()


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished extraction"):
        critics.report(tmp_path, tmp_path)
