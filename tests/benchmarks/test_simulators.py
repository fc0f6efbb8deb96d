"""The report on SHAC and PWM in simulators, on tiny real runs: own steps, and recorded ones."""

from __future__ import annotations

import csv
import sys

import pytest

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

from benchmarks.learning.simulators import main
from torchrl_pwm.envs.simulators import AnalyticEnv

COMMON = ["env.num_envs=4", "+env.episode_length=10", "actor.units=[8]", "value.units=[8]", "eval_interval=1"]
COMMON += ["stepper.critic_iterations=1", "eval_episodes=2", "evaluation.episodes=2"]
SHAC = ["iterations=2", "loss.horizon=4", *COMMON]
PWM = ["iterations=2", "model.latent_dim=16", "model.encoder_units=[8]", "model.units=[8]", "loss.horizon=3", *COMMON]
PWM += ["collector.random_steps=0", "warmup_updates=0", "replay.slice_len=3", "replay.batch_size=4"]
PWM += ["online.start_states=6", "pretraining.keep=true", "pretraining.updates=2"]
PWM += ["pretraining.warm_start={behavior_updates: 2, value_updates: 1}"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["simulators", *arguments])
        main()

    return call


def test_the_report_shows_runs_of_own_and_of_recorded_steps(command, tmp_path):
    AnalyticEnv("cartpole_swingup", 4).rollout(20, break_when_any_done=False).memmap(tmp_path / "steps")
    here = ["--tasks", "cartpole_swingup", "--folder", str(tmp_path / "runs")]
    command("run", *here, "--methods", "shac", "--", *SHAC)
    command("run", *here, "--methods", "pwm", "--", f"pretraining.data={tmp_path / 'steps'}", *PWM)
    command("report", *here, "--results", str(tmp_path))
    rows = list(csv.DictReader((tmp_path / "simulators.csv").open()))
    assert [(row["method"], row["recorded"], row["steps"]) for row in rows] == [
        *[("shac", "0", "32")] * 3,
        *[("pwm", "80", "96")] * 3,
    ]
    page = (tmp_path / "simulators.md").read_text()
    assert "| 0.00 M recorded |" in page and "their clones -" in page and "controller" in page
    assert (tmp_path / "simulators.png").stat().st_size > 10_000


def test_a_report_without_runs_says_how_to_make_them(command, tmp_path):
    with pytest.raises(SystemExit, match=r"no finished run in .*simulators run"):
        command("report", "--folder", str(tmp_path), "--results", str(tmp_path))
