"""Implicit Q-learning from recorded episodes: what it learns, its files, and that an interrupted run goes on."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("hydra")

from omegaconf import OmegaConf
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import IQLLoss

from benchmarks.learning.jobs import run_script
from benchmarks.learning.methods.iql import IQLStepper, IQLTrainer, make_iql
from benchmarks.learning.recorded import behavior, episode_returns
from tests.trainers.tiny import assert_same, write_store
from torchrl_pwm import MT80
from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter, TDMPC2ExperienceReplay
from torchrl_pwm.trainers import has_checkpoint
from torchrl_pwm.trainers.imitation import Standardize

pytestmark = pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="the extra mt80 is not installed")

TINY = ["task=mw-reach", "iterations=4", "batch_size=8", "units=[8]", "log_interval=1", "eval_interval=2"]
TINY += ["save_interval=1", "eval_episodes=1", "evaluation.episodes=1", "progress=false", "device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store")


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [])
    run_script("benchmarks/learning/methods/iql.py", arguments)


def test_an_interrupted_run_ends_with_the_same_numbers_and_both_policies(data, tmp_path, monkeypatch):
    settings, whole, parts = [*TINY, f"data.root={data}"], tmp_path / "whole", tmp_path / "parts"
    call(monkeypatch, *settings, f"folder={whole}")
    with monkeypatch.context() as patch:
        step, calls = IQLLoss.value_loss, []

        def stop_at_the_third(self, *arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return step(self, *arguments)

        patch.setattr(IQLLoss, "value_loss", stop_at_the_third)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(patch, *settings, f"folder={parts}")
    assert has_checkpoint(parts / "checkpoint") and not (parts / "summary.json").exists()
    call(monkeypatch, f"resume={parts}")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, parts)]
    assert summaries[0]["last"] == summaries[1]["last"] and summaries[0]["best"] == summaries[1]["best"]
    assert summaries[0]["returns"] == summaries[0]["last"]["returns"] and summaries[0]["select"] == "last"
    assert_same(*(torch.load(folder / "policy.pt", weights_only=True) for folder in (whole, parts)))


def test_the_policy_takes_the_actions_that_were_rewarded(tmp_path):
    draws, shape = np.random.default_rng(0), (20, 25)
    action = draws.uniform(-1, 1, (*shape, 6)).astype(np.float32)
    with EpisodeStoreWriter(tmp_path, "mt80", {"mw-reach": 20}, row_length=25) as writer:
        observation = draws.standard_normal((20, 26, 39)).astype(np.float32)
        writer.write("mw-reach", observation, action, -np.square(action[..., :4] - 0.5).sum(-1))
    settings = {"units": [32], "temperature": 3.0, "expectile": 0.7, "gamma": 0.5}
    torch.manual_seed(0)
    loss, actor = make_iql(OmegaConf.create(settings), MT80["mw-reach"])
    IQLTrainer(
        loss,
        TDMPC2ExperienceReplay(tmp_path, 64, slice_len=1),
        IQLStepper(loss, iterations=120, lr=1e-2, target_rate=0.05),
        spec=MT80["mw-reach"],
        standardize=Standardize(torch.zeros(39), torch.ones(39)),
        reward_scale=1.0,
        iterations=120,
        progress_bar=False,
    ).train()
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        chosen = actor(TensorDict({"normalized_observation": torch.randn(50, 39)}, [50]))["action"]
    assert chosen.mean() > 0.2  # the mean of the data is 0


def test_data_that_are_not_named_are_asked_for(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"name the folder of an EpisodeStore with data\.root="):
        call(monkeypatch, *TINY, f"folder={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_episodes_of_several_rows_have_one_return_each(tmp_path):
    reward = np.arange(10, dtype=np.float32)[:, None].repeat(100, 1)
    options = {"whole_episodes": True, "source": {"tasks": {"pendulum-swingup": {"behavior": "sac"}}}}
    with EpisodeStoreWriter(tmp_path, "mt80", {"pendulum-swingup": 10}, row_length=100, **options) as writer:
        writer.write("pendulum-swingup", np.zeros((10, 101, 39)), np.zeros((10, 100, 6)), reward)
    store = EpisodeStore(tmp_path)
    assert behavior(store, "pendulum-swingup") == "sac"
    assert episode_returns(store, "pendulum-swingup").tolist() == [1000.0, 3500.0]
