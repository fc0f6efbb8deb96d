"""SAC and PPO of the benchmark, at a tiny size: their files, and that an interrupted run repeats the rest."""

from __future__ import annotations

import json
import sys

import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

from benchmarks.learning.jobs import run_script
from tests.trainers.tiny import assert_same
from torchrl_pwm.data.collect.online import OnlineCollection
from torchrl_pwm.data.collect.sac import SACConfig, SACLearner
from torchrl_pwm.trainers import has_checkpoint

TINY = ["env.num_envs=4", "iterations=4", "collector.steps=6", "log_interval=1", "eval_interval=2", "save_interval=1"]
TINY += ["+env.episode_length=10", "eval_episodes=2", "evaluation.episodes=2", "progress=false"]
METHODS = {
    "sac": ["collector.random_steps=24", "updates=2", "learner.units=[8]", "replay={batch_size: 8, capacity: 500}"],
    "ppo": ["units=[8]", "epochs=2", "batch_size=12", "replay.capacity=24", "replay.batch_size=8"],
}


def call(monkeypatch, method, *arguments):
    """The script in this process; it ends with SystemExit where it ends with an exit code."""
    monkeypatch.setattr(sys, "argv", [])
    run_script(f"benchmarks/learning/methods/{method}.py", arguments)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_with_the_same_numbers(method, tmp_path, monkeypatch, capsys, device):
    settings = [*TINY, *METHODS[method], f"device={device}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    call(monkeypatch, method, *settings, f"folder={whole}")
    assert capsys.readouterr().out.splitlines()[-1] == str(whole / "summary.json")
    with monkeypatch.context() as patch:
        collect, calls = OnlineCollection.collect, []

        def stop_at_the_third_iteration(self):
            calls.append(1)
            if len(calls) == 1 + 3:  # the first are the random steps
                raise KeyboardInterrupt
            return collect(self)

        patch.setattr(OnlineCollection, "collect", stop_at_the_third_iteration)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(patch, method, *settings, f"folder={parts}")
    assert has_checkpoint(parts / "checkpoint") and not (parts / "summary.json").exists()
    call(monkeypatch, method, f"resume={parts}")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, parts)]
    assert summaries[0]["outcomes"] == summaries[1]["outcomes"]
    assert [summary["steps"] for summary in summaries] == [24 + 4 * 24] * 2
    assert_same(*(torch.load(folder / "policy.pt", weights_only=True) for folder in (whole, parts)))
    for file in whole.glob("scalars/*.csv"):
        if file.stem != "training_seconds":
            assert file.read_text() == (parts / "scalars" / file.name).read_text()


@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_option_ends_in_one_line(method, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"collector\.workers must divide the 4 envs"):
        call(monkeypatch, method, *TINY, *METHODS[method], "collector.workers=3", f"folder={tmp_path / 'run'}")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_learner_of_sac_reads_the_entry_it_is_given():
    learner = SACLearner(3, 2, SACConfig(units=(4,)), 0.99, observation_key="normalized_observation")
    assert learner.actor.in_keys == ["normalized_observation"]
    assert "normalized_observation" in learner.loss.in_keys and "observation" not in learner.loss.in_keys
