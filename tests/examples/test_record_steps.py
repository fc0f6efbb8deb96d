"""Steps of a finished run, recorded from the command line, and a model and a policy that begin with them."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMON = ["env.num_envs=4", "+env.episode_length=10", "actor.units=[8]", "value.units=[8]", "eval_interval=2"]
COMMON += ["stepper.critic_iterations=1", "eval_episodes=2", "evaluation.episodes=2", "progress=false", "device=cpu"]
SHAC = ["iterations=2", "loss.horizon=4", *COMMON]
PWM = ["iterations=2", "model.latent_dim=16", "model.encoder_units=[8]", "model.units=[8]", "loss.horizon=3", *COMMON]
PWM += ["collector.random_steps=0", "collector.first_policy_steps=32", "replay.slice_len=3", "replay.batch_size=4"]
PWM += ["warmup_updates=2", "online.start_states=6"]


def call(monkeypatch, script, *arguments):
    path = str(EXAMPLES / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(path, run_name="__main__")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        call(patch, "shac_simulator", *SHAC, f"folder={folder / 'run'}")
        call(patch, "record_steps", f"run={folder / 'run'}", f"out={folder / 'steps'}", "rows=8", "steps=25")
    return folder


def test_steps_of_a_run_are_recorded(recorded):
    steps = TensorDict.load_memmap(recorded / "steps")
    assert steps.batch_size == (8, 25) and steps["next", "done"].sum() == 16


def test_a_policy_begins_with_the_recorded_behaviour(recorded, tmp_path, monkeypatch):
    start = ["pretraining.warm_start.behavior_updates=300", "pretraining.warm_start.value_updates=2"]
    rates = ["stepper.actor_lr=1e-9", "stepper.final_lr=1e-9"]
    steps = {"plain": recorded / "steps", "cloned": recorded / "steps", "shown": tmp_path / "plain" / "steps"}
    further = {"plain": [], "cloned": start, "shown": [*start, f"pretraining.demonstrations={recorded / 'steps'}"]}
    actions = {}
    for name, data in steps.items():
        folder = tmp_path / name
        data = [f"pretraining.data={data}", "pretraining.updates=3", "pretraining.keep=true"]
        call(monkeypatch, "pwm_simulator", *PWM, *rates, *data, *further[name], f"folder={folder}")
        assert json.loads((folder / "summary.json").read_text())["steps"] == 32 + 2 * 32
        # As many steps as SHAC's, so that the next run can learn from them.
        call(monkeypatch, "record_steps", f"run={folder}", f"out={folder / 'steps'}", "rows=8", "noise=0", "steps=25")
        actions[name] = TensorDict.load_memmap(folder / "steps")["action"].abs().mean()
    # The untrained actor's actions are next to zero; SHAC's first ones are not.
    assert min(actions["cloned"], actions["shown"]) > 5 * actions["plain"] > 0


def test_a_frozen_model_of_recorded_steps_teaches_a_policy(recorded, tmp_path, monkeypatch):
    data = [f"pretraining.data={recorded / 'steps'}", "pretraining.updates=3"]
    start = ["pretraining.warm_start={behavior_updates: 3, value_updates: 1}", "warmup_updates=0"]
    for iterations in (1, 3):
        folder = tmp_path / str(iterations)
        settings = [*PWM, *data, *start, f"iterations={iterations}", "select=last", f"folder={folder}"]
        call(monkeypatch, "pwm_simulator", "online.model_updates=0", "online.recent_share=0", *settings)
    ends = [torch.load(tmp_path / end / "world_model.pt", weights_only=True) for end in ("1", "3")]
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    outcomes = json.loads((folder / "summary.json").read_text())["outcomes"]
    assert outcomes["policy"]["returns"] != outcomes["cloned behaviour"]["returns"]


def test_what_is_missing_or_in_the_way_is_named(recorded, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"No run in .*expected config.yaml there, the folder of a finished run"):
        call(monkeypatch, "record_steps", f"run={tmp_path}", f"out={tmp_path / 'steps'}")
    with pytest.raises(SystemExit, match="exists: choose another folder"):
        call(monkeypatch, "record_steps", f"run={recorded / 'run'}", f"out={recorded / 'steps'}")
    assert torch.is_tensor(TensorDict.load_memmap(recorded / "steps")["action"])
