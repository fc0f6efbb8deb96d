"""Every task of DFlex from the command line, on a stand-in for DFlex."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

from hydra.utils import instantiate

from tests.envs.simulators.conftest import installed  # noqa: F401, a fixture
from torchrl_pwm.envs.simulators.dflex import TASKS
from torchrl_pwm.runs import cli
from torchrl_pwm.runs.pwm_online import make_losses, make_training_env
from torchrl_pwm.runs.shac import make_shac_loss

SMALL = ["env.num_envs=4", "+env.episode_length=10", "actor.units=[8]", "value.units=[8]", "iterations=4"]
SMALL += ["eval_interval=2", "eval_episodes=2", "evaluation.episodes=3", "progress=false", "device=cpu"]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_a_simulator_of_both_commands(installed, task):  # noqa: F811
    shac, pwm = (
        cli.compose_config(name, [f"env=dflex/{task}", *SMALL]) for name in ("shac_simulator", "pwm_simulator")
    )
    env = instantiate(shac.env, requires_grad=True, device="cpu")
    window, _ = make_shac_loss(shac, env).rollout(env, env.reset())
    assert window.shape == (4, 32) and window["next", "reward"].requires_grad
    env = make_training_env(pwm, "cpu")
    model, *_ = make_losses(pwm, env, "cpu")
    assert (env.task, model.action_dim) == (task, env.action_spec.shape[-1])


@pytest.mark.parametrize(
    "command, options",
    [
        ("shac", ["loss.horizon=4", "stepper.critic_iterations=1"]),
        ("simulator", ["collector.random_steps=160", "warmup_updates=2", "replay.batch_size=8", "model.units=[8,8]"]),
    ],
)
def test_a_run_in_dflex(installed, tmp_path, command, options):  # noqa: F811
    cli.main(
        [command, "env=dflex/anymal", "+training_env.stagger=true", *SMALL, *options, f"folder={tmp_path / 'run'}"]
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["outcomes"]["policy"]["returns"]) == 3
