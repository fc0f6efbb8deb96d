"""Online TD-MPC2 from the command line, at a tiny size: on tasks, in a simulator, and where it was interrupted."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

from hydra.utils import instantiate

import torchrl_pwm.runs.configs  # noqa: F401
from tests.examples.test_pwm_online import call, composed
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.runs.tdmpc2_online import episode_length, make_model
from torchrl_pwm.trainers import OnlineTDMPC2OptimizationStepper, has_checkpoint

SCRIPT = "tdmpc2_online"
TINY = ["iterations=4", "collector.steps=5", "collector.random_steps=40", "warmup_updates=2", "online.updates=1"]
TINY += ["replay.batch_size=6", "replay.capacity=2000", "model.latent_dim=16", "model.units=[16,16]"]
TINY += ["model.encoder_units=[16]", "planner={num_samples: 8, num_policy_rollouts: 2, num_elites: 4, iterations: 1}"]
TINY += ["log_interval=1", "eval_interval=2", "eval_episodes=2", "save_interval=1", "evaluation.episodes=3"]
TINY += ["progress=false", "device=cpu"]
SIMULATOR = ["env=analytic/cartpole_swingup", "env.num_envs=4", "+env.episode_length=10", "collector.plan=true"]
needs_dm_control = pytest.mark.skipif(
    importlib.util.find_spec("dm_control") is None, reason="dm_control is not installed"
)


def outcomes(folder):
    return json.loads((folder / "summary.json").read_text())["outcomes"]


@needs_dm_control
def test_settings_are_the_published_ones_where_none_is_said():
    config = composed(SCRIPT)
    assert (config.task, config.loss.rho, config.replay.slice_len, config.planner.horizon) == (
        "cartpole-swingup",
        0.5,
        3,
        3,
    )
    assert (config.stepper.clip, config.stepper.encoder_lr_scale, config.stepper.tau) == (20.0, 0.3, 0.01)
    assert (config.heads.num_q, config.model.num_bins, config.model.simnorm_dim) == (5, 101, 8)
    assert composed(SCRIPT, "planner=tdmpc2").planner.num_samples == 512
    env = instantiate(config.env)
    assert episode_length("cartpole-swingup", env) == 500 and episode_length("mw-reach", env) == 100
    torch.testing.assert_close(make_model(config, env).discount, torch.tensor([0.99]))


def test_the_discount_follows_from_the_episodes_of_the_env():
    assert episode_length("cartpole_swingup", AnalyticEnv("cartpole_swingup", 2, episode_length=240)) == 240
    config = composed(SCRIPT, "env=gym/pendulum")
    assert (config.env.num_envs, config.heads.episode_lengths) == (1, 200)


def test_a_run_in_a_simulator_leaves_summary_model_metrics_and_picture(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    call(monkeypatch, SCRIPT, *TINY, *SIMULATOR, f"folder={folder}")
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1] == str(folder / "summary.json") and "policy without planning" in out
    found = outcomes(folder)
    assert all(len(outcome["returns"]) == 3 for outcome in found.values())
    assert {"policy", "untrained policy", "random actions", "hand-written controller", "last policy"} <= set(found)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 40 + 4 * 20
    assert {"real_return.csv", "loss_value.csv", "env_steps.csv"} <= {f.name for f in folder.glob("scalars/*.csv")}
    assert (folder / "training.png").exists()
    config = composed(SCRIPT, *TINY, *SIMULATOR)
    model = make_model(config, instantiate(config.env))
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))


@needs_dm_control
def test_a_run_on_a_dm_control_task(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    few = ["iterations=2", "eval_episodes=1", "evaluation.episodes=1", "evaluation.plan=false"]
    call(monkeypatch, SCRIPT, *TINY, *few, "env.task=pendulum-swingup", f"folder={folder}")
    assert "pendulum-swingup: return of 1 episodes" in capsys.readouterr().out
    assert "policy without planning" not in outcomes(folder)


def test_an_interrupted_run_ends_with_the_same_numbers(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    call(monkeypatch, SCRIPT, *TINY, *SIMULATOR, f"folder={whole}")
    with monkeypatch.context() as patch:
        original, updates = OnlineTDMPC2OptimizationStepper.update_model, []

        def stop_in_the_third_iteration(self):
            updates.append(1)
            if len(updates) == 2 + 3:  # two of the warm-up
                raise KeyboardInterrupt
            return original(self)

        patch.setattr(OnlineTDMPC2OptimizationStepper, "update_model", stop_in_the_third_iteration)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(patch, SCRIPT, *TINY, *SIMULATOR, f"folder={parts}")
    assert has_checkpoint(parts / "checkpoint") and not (parts / "summary.json").exists()
    call(monkeypatch, SCRIPT, f"resume={parts}")
    assert outcomes(parts) == outcomes(whole)
    for file in whole.glob("scalars/*.csv"):
        if file.stem != "training_seconds":
            assert file.read_text() == (parts / "scalars" / file.name).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["env.task=cartpol-swingup"], "cartpole-swingup"),
        (["online.updates=0"], "online.updates must be a whole number of at least 1"),
        (["planner.num_elites=100"], "num_elites .* at most num_samples"),
        (["env.num_envs=0"], "env.num_envs must be a whole number of at least 1"),
    ],
)
@needs_dm_control
def test_a_wrong_option_says_what_to_do(arguments, message, tmp_path, monkeypatch):
    short = ["eval_episodes=1", "evaluation.episodes=1", "evaluation.plan=false"]
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, SCRIPT, *TINY, *short, *arguments, f"folder={tmp_path / 'run'}")
