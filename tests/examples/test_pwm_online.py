"""Online PWM from the command line, at a tiny size: in a simulator and on a Gymnasium task."""

from __future__ import annotations

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
from torchrl_pwm import WorldModelPolicy
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.runs.cli import compose_config
from torchrl_pwm.runs.evaluator import Evaluator
from torchrl_pwm.runs.pwm_online import make_losses
from torchrl_pwm.trainers import has_checkpoint, load_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ["iterations=4", "env.num_envs=4", "collector.steps=5", "collector.random_steps=40", "warmup_updates=2"]
TINY += ["replay.slice_len=4", "replay.batch_size=6", "online.start_states=8", "loss.horizon=3"]
TINY += ["model.latent_dim=16", "model.units=[16,16]", "model.encoder_units=[16]", "actor.units=[8]", "value.units=[8]"]
TINY += ["log_interval=1", "eval_interval=2", "eval_episodes=2", "save_interval=1", "evaluation.episodes=3"]
TINY += ["progress=false", "device=cpu"]
SHORT = "+env.episode_length=10"


def call(monkeypatch, script, *arguments):
    """A script in this process; it ends with SystemExit where it ends with an exit code."""
    path = str(EXAMPLES / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(path, run_name="__main__")


def composed(script, *arguments):
    return compose_config(script, arguments)


def check_run(folder, out):
    assert out.strip().splitlines()[-1] == str(folder / "summary.json") and "random actions" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert all(len(found["returns"]) == 3 for found in summary["outcomes"].values())
    # Random steps, then one batch of each iteration.
    assert (summary["iterations"], summary["steps"], summary["skipped"]) == (4, 40 + 4 * 20, 0)
    assert {"real_return.csv", "collected_reward.csv", "env_steps.csv"} <= {
        file.name for file in folder.glob("scalars/*.csv")
    }
    assert (folder / "training.png").exists() and "last policy" in summary["outcomes"]
    return summary


def test_a_run_in_a_simulator_leaves_summary_networks_metrics_and_picture(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    call(monkeypatch, "pwm_simulator", *TINY, SHORT, f"folder={folder}")
    summary = check_run(folder, capsys.readouterr().out)
    assert "hand-written controller" in summary["outcomes"] and summary["task"] == "cartpole_swingup"
    config = composed("pwm_simulator", *TINY, SHORT)
    env = instantiate(config.env)
    model, loss, _ = make_losses(config, env, "cpu")
    model.load_state_dict(torch.load(folder / "world_model.pt", weights_only=True))
    loss.actor_network.load_state_dict(torch.load(folder / "policy.pt", weights_only=True))
    assert model.observation_mean is not None and model.reward_moments.count > 1
    with torch.no_grad():
        rollout = env.rollout(10, WorldModelPolicy(model, loss.actor_network))
    assert rollout["action"].abs().max() <= 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_on_a_gymnasium_task(workers, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gymnasium")
    folder = tmp_path / "run"
    call(monkeypatch, "pwm_online", *TINY, f"collector.workers={workers}", f"folder={folder}")
    summary = check_run(folder, capsys.readouterr().out)
    assert summary["task"] == "Pendulum-v1" and "hand-written controller" not in summary["outcomes"]
    # 200 rewards between -16.3 and 0.
    assert all(-3254 < value < 0 for found in summary["outcomes"].values() for value in found["returns"])


def test_the_best_of_the_evaluated_policies_counts(tmp_path, monkeypatch):
    calls = []

    def evaluated(self, policy, critics):
        calls.append([value.clone() for value in policy.state_dict().values()])
        return {"real_return": -float(len(calls))}

    monkeypatch.setattr(Evaluator, "during_training", evaluated)
    for select, kept in (("best", 0), ("last", 1)):
        calls.clear()
        folder = tmp_path / select
        call(monkeypatch, "pwm_simulator", *TINY, SHORT, f"select={select}", f"folder={folder}")
        assert len(calls) == 2
        saved = {
            **torch.load(folder / "world_model.pt", weights_only=True),
            **torch.load(folder / "policy.pt", weights_only=True),
        }
        assert all(torch.equal(a, b) for a, b in zip(calls[kept], saved.values(), strict=True))


@pytest.mark.parametrize(
    ("script", "episodes"), [("pwm_simulator", SHORT), ("pwm_online", "+env.max_episode_steps=12")]
)
def test_an_interrupted_run_goes_on_to_the_same_numbers(script, episodes, tmp_path, monkeypatch):
    if script == "pwm_online":
        pytest.importorskip("gymnasium")
    folder, whole = tmp_path / "run", tmp_path / "whole"
    settings = [*TINY, episodes, "online.policy_updates=1", "select=last"]
    call(monkeypatch, script, *settings, f"folder={whole}")
    with monkeypatch.context() as patch:
        original, rollouts = PWMLoss.imagine, []

        def stop_at_the_third(*arguments):
            rollouts.append(1)
            if len(rollouts) == 3:
                raise KeyboardInterrupt
            return original(*arguments)

        patch.setattr(PWMLoss, "imagine", stop_at_the_third)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(patch, script, *settings, f"folder={folder}")
    assert has_checkpoint(folder / "checkpoint") and not (folder / "summary.json").exists()
    call(monkeypatch, script, f"resume={folder}")
    summary = json.loads((folder / "summary.json").read_text())
    # The two iterations before the interruption, and the two after it; the random steps are not made again.
    assert summary["steps"] == 40 + 4 * 20
    for name in ("world_model.pt", "policy.pt"):
        ours, theirs = (torch.load(place / name, weights_only=True) for place in (folder, whole))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_pretraining_reads_a_folder_of_steps(tmp_path, monkeypatch, capsys):
    data = AnalyticEnv("cartpole_swingup", 4).rollout(20, break_when_any_done=False)
    data.memmap(tmp_path / "steps")
    pretraining = [f"pretraining.data={tmp_path / 'steps'}", "pretraining.updates=3"]
    call(monkeypatch, "pwm_simulator", *TINY, SHORT, *pretraining, f"folder={tmp_path / 'run'}")
    check_run(tmp_path / "run", capsys.readouterr().out)


@pytest.mark.parametrize("updates", [0, 2])
def test_recorded_steps_stay_in_the_replay(updates, tmp_path, monkeypatch):
    AnalyticEnv("cartpole_swingup", 8).rollout(20, break_when_any_done=False).memmap(tmp_path / "steps")
    pretraining = [f"pretraining.data={tmp_path / 'steps'}", f"pretraining.updates={updates}", "pretraining.keep=true"]
    call(monkeypatch, "pwm_simulator", *TINY, SHORT, *pretraining, f"folder={tmp_path / 'run'}")
    run = json.loads((tmp_path / "run" / "summary.json").read_text())
    replay = load_checkpoint(tmp_path / "run" / "checkpoint")["collected_steps"]["replay_buffer"]
    assert replay["_storage"]["_len"] == run["steps"] + 8 * 20


def test_several_folders_of_recorded_steps_are_joined(tmp_path, monkeypatch):
    env = AnalyticEnv("cartpole_swingup", 4)
    for name, steps in (("a", 20), ("b", 20), ("short", 10)):
        env.rollout(steps, break_when_any_done=False).memmap(tmp_path / name)
    several = "pretraining.data=[{},{}]"
    joined = several.format(tmp_path / "a", tmp_path / "b")
    call(monkeypatch, "pwm_simulator", *TINY, SHORT, joined, "pretraining.keep=true", f"folder={tmp_path / 'run'}")
    run = json.loads((tmp_path / "run" / "summary.json").read_text())
    replay = load_checkpoint(tmp_path / "run" / "checkpoint")["collected_steps"]["replay_buffer"]
    assert replay["_storage"]["_len"] == run["steps"] + 2 * 4 * 20
    unequal = several.format(tmp_path / "a", tmp_path / "short")
    with pytest.raises(SystemExit, match="must agree in the number of steps of a row"):
        call(monkeypatch, "pwm_simulator", *TINY, SHORT, unequal, "pretraining.updates=1", f"folder={tmp_path / 'no'}")


@pytest.mark.parametrize(
    ("task", "rows", "options", "message"),
    [
        ("double_pendulum", 4, ["updates=2"], r"\.data=.* of the env cartpole_swingup, .*\[N, T, 5\]"),
        ("cartpole_swingup", 6, ["keep=true"], r"keep=true shares the 6 rows of pretraining\.data out to 4 envs"),
    ],
)
def test_recorded_steps_that_do_not_fit_the_env_are_refused(task, rows, options, message, tmp_path, monkeypatch):
    AnalyticEnv(task, rows).rollout(20, break_when_any_done=False).memmap(tmp_path / "steps")
    given = [f"pretraining.data={tmp_path / 'steps'}", *(f"pretraining.{option}" for option in options)]
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, "pwm_simulator", *TINY, SHORT, *given, f"folder={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretraining.keep=true"], r"pretraining.data=None: expected the folder of a TensorDict \[N, T\]"),
        (["pretraining.updates=3"], r"pretraining.data=None: expected the folder of a TensorDict \[N, T\]"),
        (["pretraining.warm_start.behavior_updates=1"], r"pretraining.data=None: expected the folder"),
        (["collector.workers=3"], "collector.workers must divide the 4 envs, found 3"),
        (["env.task=cartpol"], "cartpole_swingup"),
        (["online.recent_share=2"], "recent_share must be a number of at least 0 and at most 1"),
    ],
)
def test_a_wrong_option_says_what_to_do(arguments, message, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        call(monkeypatch, "pwm_simulator", *TINY, SHORT, *arguments, f"folder={tmp_path / 'run'}")
