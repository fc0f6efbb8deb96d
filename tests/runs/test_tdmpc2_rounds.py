"""Rounds of TD-MPC2: it plays, and all of it trains on with a share of its own episodes."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from itertools import pairwise

import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")
pytest.importorskip("metaworld")
pytest.importorskip("dm_control")

from tests.examples.test_tdmpc2_mt80 import SCRIPT, TINY
from tests.trainers.tiny import assert_same, write_store
from torchrl_pwm import TDMPC2Loss, load_policy
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.evaluation import read_metrics, read_summary
from torchrl_pwm.runs.load import read_config
from torchrl_pwm.runs.tdmpc2_offline import model_of_run
from torchrl_pwm.trainers import has_checkpoint

pytestmark = pytest.mark.usefixtures("short_episodes")

ROUNDS = ["rounds.count=2", "rounds.iterations=2", "rounds.episodes={dm_control: 1, metaworld: 1}", "workers=1"]
ROUNDS += ["rounds.noise=[0.2]", "training.iterations=2", "training.eval_interval=2", "training.select=last"]
ROUNDS += ["evaluation.episodes=1", "evaluation.prior=true"]


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = write_store(tmp_path_factory.mktemp("data") / "store")
    return [*TINY, *ROUNDS, "data=open", f"data.root={root}"]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, *settings, f"folder={folder}")
    return folder


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)["model"]


def test_each_round_plays_trains_on_and_is_evaluated(whole):
    assert [EpisodeStore(whole / f"rounds/{number}/data").num_transitions for number in (0, 1)] == [20, 20]
    for number in (1, 2):
        here = whole / f"rounds/{number}/model"
        assert (here / "best.pt").exists()
        # before its updates, half-way and after them
        assert read_metrics(here)["real_score"][0].tolist() == [0, 1, 2]
    stages = [whole / "model", whole / "rounds/1/model", whole / "rounds/2/model"]
    policies = [{key: value for key, value in weights(stage).items() if key.startswith("_pi")} for stage in stages]
    assert all(any(not torch.equal(one[key], two[key]) for key in one) for one, two in pairwise(policies))
    summary = read_summary(whole)
    assert {"last", "best"} <= set(summary["tasks"][0]) and "2 round(s)" in " ".join(summary["notes"])


def test_the_model_of_the_last_round_is_the_one_of_the_run_with_and_without_planning(whole):
    assert model_of_run(read_config(whole), whole) == whole / "rounds/2/model/model.pt"
    assert load_policy(whole, "cpu", plan=False) is not None
    planned, prior = (json.loads((whole / place / "mw-reach.json").read_text()) for place in ("tasks", "tasks/prior"))
    assert planned["returns"] != prior["returns"]


def test_an_interrupted_round_goes_on_to_the_same_numbers(whole, settings, tmp_path, monkeypatch):
    parts, updates, original = tmp_path / "parts", [], TDMPC2Loss.policy_loss

    def stop_in_the_second_round(*arguments):
        updates.append(1)
        if len(updates) == 2 + 2 + 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TDMPC2Loss, "policy_loss", stop_in_the_second_round)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(patch, *settings, "training.save_interval=1", f"folder={parts}")
    assert has_checkpoint(parts / "rounds/2/model/checkpoint") and not (parts / "rounds/2/model/model.pt").exists()
    call(monkeypatch, f"resume={parts}")
    assert_same(weights(parts / "rounds/2/model"), weights(whole / "rounds/2/model"))
    assert read_summary(parts)["tasks"] == read_summary(whole)["tasks"]


def test_a_run_goes_on_with_further_rounds(whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "run")
    call(monkeypatch, f"resume={folder}", "rounds.count=3")
    assert (folder / "rounds/3/model/model.pt").exists() and (folder / "earlier/rounds.count-2/summary.json").exists()
    assert_same(weights(folder / "rounds/2/model"), weights(whole / "rounds/2/model"))
    assert "3 round(s)" in " ".join(read_summary(folder)["notes"])


def test_a_round_goes_on_from_the_last_weights(settings, tmp_path, monkeypatch):
    still = ["rounds.lr=1e-12", "rounds.count=1", "rounds.evaluations=1", "rounds.plan=false", "plan=false"]
    call(monkeypatch, *settings, *still, f"folder={tmp_path}/run")
    before, after = weights(tmp_path / "run/model"), weights(tmp_path / "run/rounds/1/model")
    for key, value in before.items():
        if isinstance(value, torch.Tensor) and "target" not in key:
            torch.testing.assert_close(after[key], value)
