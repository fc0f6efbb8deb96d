"""Evaluation in Gymnasium's envs and tasks, and policies and envs whose actions do not fit together."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import ActionScaling, Compose, GymEnv, StepCounter, TransformedEnv

from torchrl_pwm import (
    PWMWorldModel,
    WorldModelPolicy,
    WorldModelWrapper,
    evaluate_policy,
    make_gym_env,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.evaluation.trust import probe_trust

from .counting_env import CountingEnv

gymnasium = pytest.importorskip("gymnasium")


class Plain(gymnasium.Env):
    """o' = o + a; ends after ``length`` steps, or never."""

    observation_space = gymnasium.spaces.Box(-10, 10, (2,), "float64")
    action_space = gymnasium.spaces.Box(-1, 1, (2,), "float32")
    length = 5

    def __init__(self, **options):
        """TorchRL's GymEnv passes ``frameskip`` where the task has no time limit."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.steps = self.observation_space.sample() * 0, 0
        return self.state, {}

    def step(self, action):
        self.steps += 1
        self.state = self.state + action.astype(self.state.dtype)
        return self.state, float(action.sum()), self.steps == self.length, False, {}


class Half(Plain):
    action_space = gymnasium.spaces.Box(0, float("inf"), (2,), "float32")


class Whole(Plain):
    observation_space = gymnasium.spaces.Box(-10, 10, (2,), "int64")


@pytest.fixture(scope="module", autouse=True)
def registered():
    for name, kind in (("Plain", Plain), ("Half", Half), ("Whole", Whole)):
        gymnasium.register(f"torchrl_pwm_test/{name}-v0", kind, max_episode_steps=9)
    gymnasium.register("torchrl_pwm_test/Endless-v0", Plain)


def ones(observation):
    return torch.ones(*observation.shape[:-1], 2)


POLICY = TensorDictModule(ones, ["observation"], ["action"])


def test_a_gymnasium_id_and_an_env_are_evaluated_as_they_are() -> None:
    for where, label in (
        ("torchrl_pwm_test/Plain-v0", "torchrl_pwm_test/Plain-v0"),
        (gymnasium.make("torchrl_pwm_test/Plain-v0"), "torchrl_pwm_test/Plain-v0"),
        (gymnasium.wrappers.TimeLimit(Plain(), 7), "Plain"),
    ):
        result = evaluate_policy(POLICY, where, episodes=2)
        assert (result.task, result.returns.tolist(), result.lengths.tolist()) == (label, [10.0] * 2, [5] * 2)


def test_several_ids_are_evaluated_with_a_world_model_and_side_by_side() -> None:
    model = PWMWorldModel(3, 1, latent_dim=16, units=(12,))
    results = evaluate_policy(make_pwm_actor(16, 1), ["Pendulum-v1"], world_model=model, episodes=3, num_envs=3)
    assert results["Pendulum-v1"].lengths.tolist() == [200] * 3


def test_an_unscaled_env_is_named_for_a_policy_of_the_unit_box() -> None:
    model, actor = PWMWorldModel(3, 1, latent_dim=16, units=(12,)), make_pwm_actor(16, 1)
    raw = TransformedEnv(GymEnv("Pendulum-v1"), WorldModelWrapper(model))
    with pytest.raises(ValueError, match=r"policy acts in \[-1, 1\], the env in \[-2, 2\].*ActionScaling"):
        evaluate_policy(actor, raw, episodes=1)
    with pytest.raises(ValueError, match=r"policy acts in \[-1, 1\], the env in \[-2, 2\]"):
        evaluate_policy(WorldModelPolicy(model, actor), GymEnv("Pendulum-v1"), episodes=1)
    scaled = TransformedEnv(GymEnv("Pendulum-v1"), Compose(ActionScaling(), StepCounter(3), WorldModelWrapper(model)))
    assert evaluate_policy(actor, scaled, episodes=1).lengths.tolist() == [3]


def test_discrete_actions_are_named_for_a_continuous_policy() -> None:
    model, actor = PWMWorldModel(4, 2, latent_dim=16, units=(12,)), make_pwm_actor(16, 2)
    for encoding in (False, True):
        env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=encoding), WorldModelWrapper(model))
        with pytest.raises(ValueError, match="actions are continuous, those of the env discrete"):
            evaluate_policy(actor, env, episodes=1)


def test_a_versioned_name_is_one_of_gymnasium() -> None:
    with pytest.raises(ValueError, match="Did you mean: `Pendulum`"):
        evaluate_policy(POLICY, "Pendulm-v1", episodes=1)


def test_actions_that_the_env_cannot_take_are_named() -> None:
    def twice(td):
        return td.set("action", 2 * torch.ones(*td.batch_size, 1))

    with pytest.raises(ValueError, match=r"takes 'action' from -1 to 1, the policy wrote 2 to 2"):
        evaluate_policy(twice, CountingEnv(3), episodes=1)
    with pytest.raises(ValueError, match=r"reads 'action' of shape \[1\], the policy wrote \[2\]"):
        evaluate_policy(lambda td: td.set("action", torch.ones(*td.batch_size, 2)), CountingEnv(3), episodes=1)


def test_actions_without_finite_bounds_are_named() -> None:
    with pytest.raises(ValueError, match=r"finite bounds, found actions from 0 to inf in .*Half"):
        make_gym_env("torchrl_pwm_test/Half-v0")
    model = PWMWorldModel(2, 2, latent_dim=16, units=(12,))
    env = TransformedEnv(GymEnv("torchrl_pwm_test/Half-v0"), WorldModelWrapper(model))
    with pytest.raises(ValueError, match="from 0 to inf"):
        env.transform.imagined_env()
    with pytest.raises(ValueError, match=r"env in \[0, inf\]: give it finite bounds"):
        evaluate_policy(make_pwm_actor(16, 2), env, episodes=1)


def test_a_task_without_a_time_limit_is_told_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"Endless-v0 has no time limit.*max_episode_steps=1000"):
        make_gym_env("torchrl_pwm_test/Endless-v0")
    with pytest.raises(ValueError, match="has no time limit"):
        evaluate_policy(POLICY, "torchrl_pwm_test/Endless-v0", episodes=1)
    limited = make_gym_env("torchrl_pwm_test/Endless-v0", max_episode_steps=3)
    assert evaluate_policy(POLICY, limited, episodes=1).lengths.tolist() == [3]
    with pytest.warns(UserWarning, match=r"has no time limit: .* max_steps=100000"):
        evaluate_policy(POLICY, GymEnv("torchrl_pwm_test/Endless-v0"), episodes=1)


def test_whole_numbers_are_cast() -> None:
    env = make_gym_env("torchrl_pwm_test/Whole-v0", 2)
    assert env.rollout(4)["observation"].dtype == env.observation_spec["observation"].dtype == torch.float32


@pytest.mark.parametrize(("termination", "promised"), [(True, 60.0), (False, None)])
def test_a_model_that_sees_no_fall_promises_an_episode_to_the_time_limit(termination, promised, monkeypatch):
    pytest.importorskip("mujoco")
    torch.manual_seed(0)
    model = PWMWorldModel(4, 1, latent_dim=16, units=(16,), num_bins=0, termination=termination).requires_grad_(False)
    monkeypatch.setattr(model, "reward_logits", lambda latent, *_: torch.ones_like(latent[..., :1]))
    if termination:
        monkeypatch.setattr(model, "termination_logits", lambda latent, *_: torch.full_like(latent[..., :1], -9.0))
    env = make_gym_env("InvertedPendulum-v5", 3, max_episode_steps=60)
    policy = WorldModelPolicy(model, make_pwm_actor(16, 1, units=(8,)))
    probe = probe_trust(policy, model, env, make_value_ensemble(16), episodes=3, seed=1, reward_space="raw")
    lengths = probe.result.lengths.tolist()
    assert max(lengths) < 60, "the pendulum falls"
    assert probe.imagined.tolist() == (lengths if promised is None else [promised] * 3)
    assert probe.exploited == termination and probe.gap.cut == 0
