"""Errors of simulator envs: expected, found, what to do."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from tests.envs.simulators.hover import Hover, Root
from torchrl_pwm.envs.simulators import AnalyticEnv, SimulatorEnv


def stepped(env, action):
    return env.step(env.reset().set("action", action))


def test_gradients_asked_of_an_env_without_them():
    policy = TensorDictModule(nn.Linear(2, 2), ["observation"], ["action"])
    env = SimulatorEnv(Hover(3))
    with pytest.raises(RuntimeError, match=r"requires_grad=False.*requires_grad=True.*torch\.no_grad"):
        env.rollout(2, policy)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 5)])
def test_actions_of_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"expected actions of shape \(3, 2\).*found \(3,.*action_spec"):
        stepped(SimulatorEnv(Hover(3)), torch.zeros(shape))


def test_actions_of_wrong_dtype():
    with pytest.raises(ValueError, match=r"expected actions of dtype torch.float32, found torch.float64"):
        stepped(SimulatorEnv(Hover(3)), torch.zeros(3, 2, dtype=torch.float64))


def test_actions_on_another_device():
    env = SimulatorEnv(Hover(3))
    env.reset()
    with pytest.raises(ValueError, match="expected actions on cpu, found meta"):
        env.step(TensorDict({"action": torch.zeros(3, 2, device="meta")}, [3]))


def test_a_step_before_the_first_reset():
    env = SimulatorEnv(Hover(3))
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step(env.fake_tensordict())


@pytest.mark.parametrize("num_envs", [0, -1, 1.5, True])
def test_num_envs_out_of_range(num_envs):
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1"):
        AnalyticEnv("double_pendulum", num_envs)


@pytest.mark.parametrize("dtype", [torch.int64, "float32"])
def test_a_dtype_that_is_no_float(dtype):
    with pytest.raises(ValueError, match="floating-point"):
        AnalyticEnv("double_pendulum", 1, dtype=dtype)


@pytest.mark.parametrize("seed", [-1, 2**32, None, 0.5])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        AnalyticEnv("double_pendulum", 1, seed=seed)


def test_no_seed_at_all():
    with pytest.raises(ValueError, match="integer seed"):
        SimulatorEnv(Hover(1)).set_seed(None)


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown task 'acrobot'.*'double_pendulum', 'cartpole_swingup', 'synthetic'"):
        AnalyticEnv("acrobot", 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"non_finite": "skip"}, '"raise" or "terminate", found \'skip\''),
        ({"reward_timing": "later"}, '"after" or "before", found \'later\''),
        ({"episode_length": 0}, "episode_length must be at least 1"),
        ({"substeps": 0}, "substeps must be at least 1"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        AnalyticEnv("double_pendulum", 1, **options)


def test_an_option_of_another_task():
    with pytest.raises(TypeError, match="observation_size"):
        AnalyticEnv("double_pendulum", 1, observation_size=3)
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        AnalyticEnv("synthetic", 1, observation_size=0)


def test_a_simulator_that_drops_the_graph():
    class Detached(Hover):
        def step(self, actions):
            return super().step(actions.detach())

    env = SimulatorEnv(Detached(2), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"Detached.step returned .* without a graph"):
        stepped(env, torch.zeros(2, 2, requires_grad=True))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"reward": torch.zeros(2, 1)}, r"must return reward of shape \(2,\) and torch.float32, found \(2, 1\)"),
        ({"terminated": torch.zeros(2)}, r"must return terminated of .* torch.bool, found .* torch.float32"),
        ({"observation": torch.zeros(2, 3)}, r"must return observation of shape \(2, 2\)"),
    ],
)
def test_a_simulator_that_returns_the_wrong_things(wrong, message):
    class Wrong(Hover):
        def step(self, actions):
            return super().step(actions)._replace(**wrong)

    with pytest.raises(ValueError, match=message):
        stepped(SimulatorEnv(Wrong(2)), torch.zeros(2, 2))


def test_a_simulator_that_resets_wrongly():
    class Part(Hover):
        def reset(self, rows):
            return super().reset(rows)[rows][:1]

    class Lost(Hover):
        def reset(self, rows):
            return super().reset(rows) / 0

    with pytest.raises(ValueError, match=r"observation of every env, of shape \(2, 2\)"):
        SimulatorEnv(Part(2)).reset()
    with pytest.raises(FloatingPointError, match=r"start of envs \[0, 1\] is not finite"):
        SimulatorEnv(Lost(2)).reset()


def test_a_simulator_cannot_be_moved():
    env = SimulatorEnv(Hover(2))
    assert env.to("cpu") is env
    with pytest.raises(ValueError, match="lives on cpu: build the env with device='meta'"):
        env.to("meta")


def signs(*negative):
    """Actions [4, 2] whose first entry is negative in the given envs."""
    actions = torch.full((4, 2), 0.25)
    actions[list(negative), 0] = -0.25
    return actions


def test_non_finite_envs_stop_the_run_and_are_named():
    env = SimulatorEnv(Root(4))
    _, td = env.step_and_maybe_reset(env.reset().set("action", signs()))
    with pytest.raises(FloatingPointError, match=r"envs \[1, 3\] became non-finite at step \[2, 2\].*terminate"):
        env.step(td.set("action", signs(1, 3)))


def test_a_non_finite_action_is_named_as_the_cause():
    env = SimulatorEnv(Hover(4))
    actions = torch.zeros(4, 2)
    actions[2, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"envs \[2\] .* actions of envs \[2\] were not finite already"):
        stepped(env, actions)


def test_non_finite_envs_are_terminated_on_request():
    env = SimulatorEnv(Root(4, seed=1), non_finite="terminate")
    first, td = env.step_and_maybe_reset(env.reset().set("action", signs()))
    second, td = env.step_and_maybe_reset(td.set("action", signs(1, 3)))
    bad = torch.tensor([False, True, False, True])
    assert torch.equal(second["next", "terminated"].flatten(), bad)
    assert torch.equal(second["next", "done"].flatten(), bad)
    assert not second["next", "reward"][bad].any() and second["next", "reward"][~bad].all()
    assert torch.equal(second["next", "observation"][bad], first["next", "observation"][bad])
    assert env.non_finite_count == 2
    assert td["observation"].isfinite().all() and not td["done"].any()
    third, _ = env.step_and_maybe_reset(td.set("action", signs()))
    assert third["next", "observation"].isfinite().all() and env.non_finite_count == 2


def test_gradients_stay_finite_where_an_env_was_terminated():
    """Without a stop, the NaN comes back through the zero gradient of the replaced reward."""

    def gradients(*negative):
        env = SimulatorEnv(Root(4, seed=1), requires_grad=True, non_finite="terminate")
        actions = torch.stack([signs(), signs(*negative), signs()]).requires_grad_()
        td, rewards = env.reset(), []
        for action in actions:
            transition, td = env.step_and_maybe_reset(td.set("action", action))
            rewards.append(transition["next", "reward"])
        torch.stack(rewards).sum().backward()
        return actions.grad

    clean, broken = gradients(), gradients(1)
    assert clean.isfinite().all() and broken.isfinite().all()
    assert torch.equal(broken[:, [0, 2, 3]], clean[:, [0, 2, 3]])
    assert not broken[:2, 1].any()  # the broken episode teaches nothing,
    assert broken[2, 1].all()  # the one after it does


def test_a_plain_tuple_is_a_step():
    class Plain(Hover):
        def step(self, actions):
            return tuple(super().step(actions))[:3]

    assert stepped(SimulatorEnv(Plain(2)), torch.zeros(2, 2))["next", "reward"].shape == (2, 1)
