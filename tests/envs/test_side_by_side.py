"""Episodes side by side beside those that one env plays one after the other."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("dm_control")
pytest.importorskip("metaworld")

from torchrl.envs.utils import check_env_specs

from torchrl_pwm.envs import make_task_env
from torchrl_pwm.envs.side_by_side import TaskSimulators


def reacting(td):
    """A policy whose action tells states apart."""
    observation = td["observation"]
    return td.set("action", torch.sin(3 * observation[..., :6] + observation.sum(-1, keepdim=True)))


# One with draws at each reset, one whose target is part of the model, and two of Meta-World.
@pytest.mark.parametrize("task", ["cup-catch", "finger-turn-hard", "mw-drawer-close", "mw-peg-insert-side"])
def test_episodes_side_by_side_are_those_of_one_env_in_their_order(task):
    simulators = TaskSimulators(task)
    env = simulators.env(2, task_set="mt80")
    steps = env.task_spec.episode_length // (1 if env.task_spec.suite == "metaworld" else 10)
    one = make_task_env(task, task_set="mt80")
    one.set_seed(7)
    expected = torch.stack([one.rollout(steps, reacting) for _ in range(4)])
    for _ in range(2):  # a seed begins anew, whatever was played before
        env.set_seed(7)
        found = torch.cat([env.rollout(steps, reacting), env.rollout(steps, reacting)])
        for key in ("observation", "action", "task", ("next", "reward"), ("next", "done"), ("next", "observation")):
            assert torch.equal(found[key], expected[key]), key
    simulators.close()
    one.close()


def test_env_of_episodes_side_by_side_keeps_to_its_specs():
    simulators = TaskSimulators("mw-reach")
    check_env_specs(simulators.env(2, task_set="mt80"))
    check_env_specs(simulators.env(3))
    assert len(simulators) == 3
    assert simulators.env(2).rollout(200).shape == (2, 100)
    simulators.close()


def test_some_of_the_envs_cannot_be_reset_alone():
    env = TaskSimulators("pendulum-swingup").env(2)
    td = env.reset()
    with pytest.raises(ValueError, match="reset all envs together"):
        env.reset(td.set("_reset", torch.tensor([[True], [False]])))


@pytest.mark.parametrize(
    "action, message",
    [(torch.zeros(2, 4), "takes actions of shape"), (torch.full((2, 1), torch.nan), "must be finite")],
)
def test_actions_that_do_not_fit_are_refused(action, message):
    env = TaskSimulators("pendulum-swingup").env(2)
    with pytest.raises(RuntimeError, match="before its first reset"):
        env.step(env.fake_tensordict())
    td = env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(td.set("action", action))
