"""SHAC from the command line, at a tiny size."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

from hydra.utils import instantiate

import torchrl_pwm.runs.configs  # noqa: F401
from torchrl_pwm import SHACLoss
from torchrl_pwm.envs.simulators.newton.env import _NAMES
from torchrl_pwm.runs.cli import CONF, compose_config
from torchrl_pwm.runs.shac import make_shac_loss
from torchrl_pwm.trainers import has_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "shac_simulator.py"
TINY = ["iterations=6", "env.num_envs=4", "+env.episode_length=10", "loss.horizon=4", "stepper.critic_iterations=1"]
TINY += ["actor.units=[8]", "value.units=[8]", "eval_interval=2", "eval_episodes=2", "save_interval=2"]
TINY += ["evaluation.episodes=3", "progress=false", "device=cpu"]
ORIGINAL = ["value.num_nets=1", "loss.delay_value=true"]


def call(monkeypatch, *arguments):
    """The script in this process; it ends with SystemExit where it ends with an exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def composed(*arguments):
    return compose_config("shac_simulator", arguments)


def test_settings_that_are_not_the_envs_are_published():
    config = composed("env=analytic/cartpole_swingup")
    assert config.task == config.env.task == "cartpole_swingup"
    assert config.reward_scale == 1
    assert (config.loss.horizon, config.gamma, config.lmbda) == (32, 0.99, 0.95)
    assert config.loss.normalize_returns and config.normalize_observations and not config.loss.delay_value
    assert (config.actor.init_log_std, config.actor.min_log_std, config.value.num_nets) == (-1.0, -10.0, 3)
    stepper = config.stepper
    assert (stepper.actor_lr, stepper.critic_lr, stepper.final_lr, *stepper.betas) == (2e-3, 5e-4, 1e-5, 0.7, 0.95)
    assert (stepper.actor_clip, stepper.critic_clip) == (1.0, 100.0)
    assert (stepper.critic_iterations, stepper.critic_batches, stepper.skip_non_finite) == (16, 4, False)


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize("arguments", [[], ["normalize_observations=false", *ORIGINAL]])
def test_networks_have_the_sizes_of_the_env(arguments):
    config = composed(*TINY, *arguments)
    env = instantiate(config.env, requires_grad=True)
    loss = make_shac_loss(config, env)
    assert isinstance(loss, SHACLoss) and (loss.normalizer is None) == bool(arguments)
    assert loss.delay_value == bool(arguments)
    rollout, _ = loss.rollout(env, env.reset())
    assert loss.value_target(rollout).shape == (4, 4, 1)


def test_a_run_leaves_summary_policy_metrics_and_picture(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    call(monkeypatch, *TINY, f"folder={folder}")
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1] == str(folder / "summary.json") and "random actions" in out
    summary = json.loads((folder / "summary.json").read_text())
    expected = ["policy", "untrained policy", "random actions", "no action", "hand-written controller"]
    expected += ["last policy", "best policy"]
    assert list(summary["outcomes"]) == expected
    assert all(len(found["returns"]) == 3 for found in summary["outcomes"].values())
    assert (summary["iterations"], summary["steps"], summary["skipped"]) == (6, 6 * 4 * 4, 0)
    assert {"real_return.csv", "reward_mean.csv"} <= {file.name for file in folder.glob("scalars/*.csv")}
    assert (folder / "training.png").exists()
    policy = torch.load(folder / "policy.pt", weights_only=True)
    loss = make_shac_loss(composed(*TINY), instantiate(composed(*TINY).env))
    loss.policy.load_state_dict(policy)
    assert loss.normalizer.moments.count > 1
    with pytest.raises(SystemExit, match="already holds a run"):
        call(monkeypatch, *TINY, f"folder={folder}")


@pytest.mark.parametrize("options", [[], ORIGINAL])
def test_an_interrupted_run_ends_with_the_same_numbers(options, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    call(monkeypatch, *TINY, *options, f"folder={whole}")
    with monkeypatch.context() as patch:
        original, windows = SHACLoss.rollout, []

        def stop_at_the_fifth(*arguments):
            windows.append(1)
            if len(windows) == 5:
                raise KeyboardInterrupt
            return original(*arguments)

        patch.setattr(SHACLoss, "rollout", stop_at_the_fifth)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(patch, *TINY, *options, f"folder={parts}")
    assert has_checkpoint(parts / "checkpoint") and not (parts / "summary.json").exists()
    call(monkeypatch, f"resume={parts}")
    outcomes = [json.loads((folder / "summary.json").read_text())["outcomes"] for folder in (whole, parts)]
    assert outcomes[0] == outcomes[1]
    for file in whole.glob("scalars/*.csv"):
        if file.stem != "training_seconds":
            assert file.read_text() == (parts / "scalars" / file.name).read_text()


PUBLISHED = {
    "dflex/ant": (128, 2000, "DFlexEnv"),
    "dflex/hopper": (64, 2000, "DFlexEnv"),
    "dflex/anymal": (64, 3000, "DFlexEnv"),
    "dflex/humanoid": (64, 3000, "DFlexEnv"),
    "dflex/snu_humanoid": (64, 5000, "DFlexEnv"),
    "dflex/cartpole_swingup": (1024, 200, "DFlexEnv"),
    "dflex/double_pendulum": (1024, 200, "DFlexEnv"),
    "rewarped/cartpole": (1024, 200, "RewarpedEnv"),
    "rewarped/ant": (128, 2000, "RewarpedEnv"),
    "rewarped/humanoid": (64, 3000, "RewarpedEnv"),
}


@pytest.mark.parametrize("task", _NAMES)
def test_newton_tasks_run_with_64_rows_and_settings_of_their_own(task):
    config = composed(f"env=newton/{task}")
    assert (config.env._target_, config.env.num_envs) == ("torchrl_pwm.envs.simulators.NewtonEnv", 64)
    assert config.task == config.env.task == task
    assert config.iterations < 2000 and list(config.actor.units) != [400, 200, 100]
    assert (config.loss.horizon, config.gamma, config.normalize_observations) == (32, 0.99, True)


def test_every_newton_task_has_its_configs():
    for group in ("env", "shac"):
        assert {file.stem for file in CONF.glob(f"{group}/newton/*.yaml")} == set(_NAMES)


def test_every_config_of_an_external_simulator_is_here():
    found = {f"{file.parent.name}/{file.stem}" for file in CONF.glob("env/*/*.yaml")}
    assert {name for name in found if name.startswith(("dflex/", "rewarped/"))} == set(PUBLISHED)


@pytest.mark.parametrize("env", PUBLISHED)
def test_external_simulators_run_with_the_published_rows_windows_and_networks(env):
    config = composed(f"env={env}")
    num_envs, windows, kind = PUBLISHED[env]
    assert (config.env.num_envs, config.iterations, config.task) == (num_envs, windows, env.split("/")[1])
    assert config.env._target_ == f"torchrl_pwm.envs.simulators.{kind}" and config.env.shim is True
    assert list(config.actor.units) == [400, 200, 100] and list(config.value.units) == [400, 200]


@pytest.mark.parametrize("env", PUBLISHED)
def test_without_the_simulator_a_run_ends_with_one_line(env, tmp_path, monkeypatch):
    library = env.split("/")[0]
    monkeypatch.setattr(importlib.import_module(f"torchrl_pwm.envs.simulators.{library}"), f"_has_{library}", False)
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, f"env={env}", "device=cpu", f"folder={tmp_path / 'run'}")
    error, hint = str(end.value).splitlines()
    assert error.startswith("ImportError: ") and "pip install" in error and "HYDRA_FULL_ERROR" in hint
    assert not (tmp_path / "run").exists()


def test_a_wrong_option_says_what_to_do_and_leaves_no_folder(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="cartpole_swingup"):
        call(monkeypatch, *TINY, "env.task=cartpol", f"folder={tmp_path / 'run'}")
    with pytest.raises(SystemExit, match=r"loss\.horizon must be a whole number of at least 1"):
        call(monkeypatch, *TINY, "loss.horizon=0", f"folder={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_scaled_rewards_are_those_of_training_alone(tmp_path, monkeypatch):
    found = {}
    for scale in (1.0, 0.1):
        folder = tmp_path / str(scale)
        call(monkeypatch, *TINY, "iterations=2", f"reward_scale={scale}", f"folder={folder}")
        first = (folder / "scalars" / "reward_mean.csv").read_text().split()[0]
        outcomes = json.loads((folder / "summary.json").read_text())["outcomes"]
        found[scale] = float(first.split(",")[1]), outcomes["untrained policy"]["return_mean"]
    assert found[0.1][0] == pytest.approx(0.1 * found[1.0][0])
    assert found[0.1][1] == pytest.approx(found[1.0][1])
