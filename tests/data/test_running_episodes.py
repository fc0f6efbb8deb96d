"""Collections of envs whose state cannot be saved go on, from a checkpoint, with the steps of undisturbed ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, InitTracker, SerialEnv, StepCounter, TransformedEnv

from tests.data.test_rows import KEYS, false_joints
from tests.envs.drift_env import DriftEnv
from torchrl_pwm._utils.checkpoint import load_checkpoint, save_checkpoint
from torchrl_pwm.data import OnlineCollection, make_online_replay
from torchrl_pwm.envs import make_gym_env, make_task_envs
from torchrl_pwm.envs.random_policy import RandomPolicy

STEPS, BEFORE, AFTER = 5, 7, 8


def counted(make: Callable[[], EnvBase]) -> EnvBase:
    """Episodes of at most 12 steps, which the transform of an env with further ones counts."""
    return TransformedEnv(make(), StepCounter(max_steps=12), auto_unwrap=True).append_transform(InitTracker())


def one() -> EnvBase:
    import gymnasium

    from torchrl_pwm.envs.gymnasium_env import wrap_gym_env

    return wrap_gym_env(gymnasium.make("Pendulum-v1", max_episode_steps=8))


ENVS: dict[str, tuple[str, Callable[[], EnvBase]]] = {
    "pendulum": ("gymnasium", partial(make_gym_env, "Pendulum-v1", 3, max_episode_steps=8)),
    "one env": ("gymnasium", one),
    "falls apart": ("mujoco", partial(make_gym_env, "Hopper-v5", 3)),
    "transformed": ("gymnasium", partial(counted, partial(make_gym_env, "Pendulum-v1", 2))),
    "processes": ("gymnasium", partial(make_gym_env, "Pendulum-v1", 2, parallel=True, max_episode_steps=8)),
    "DMControl": ("dm_control", partial(make_task_envs, "cartpole-swingup", 2)),
    "Meta-World": ("metaworld", partial(make_task_envs, "mw-push", 2)),
}
SLOW = {"processes": [pytest.mark.slow]}  # 20 seconds to start them
KINDS = [
    pytest.param(name, marks=[pytest.mark.skipif(missing, reason=f"{needs} is missing"), *SLOW.get(name, ())])
    for name, (needs, _) in ENVS.items()
    for missing in [importlib.util.find_spec(needs) is None]
]


def make_collection(env: EnvBase, *, seed: int | None = 3) -> tuple[OnlineCollection, RandomPolicy]:
    policy = RandomPolicy(env.action_spec.shape[-1], seed=0)
    frames = STEPS * env.batch_size.numel()
    collector = Collector(env, policy, frames_per_batch=frames, auto_register_policy_transforms=False)
    replay = make_online_replay(1000, slice_len=4, batch_size=6)
    return OnlineCollection(collector, replay, KEYS, episode_seed=seed), policy


def collected(collection: OnlineCollection) -> dict[str, Any]:
    return collection.replay_buffer[:].to_dict()


class Unseeded(DriftEnv):
    """An env with draws that no seed decides."""

    def _step(self, tensordict):
        out = super()._step(tensordict)
        return out.set("observation", out["observation"] + torch.rand(()))


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_collection_goes_on_with_the_same_steps(kind, tmp_path, monkeypatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr("torchrl_pwm.data.collect.episodes.torchrl_logger.warning", warned.append)
    whole, policy = make_collection(ENVS[kind][1]())
    try:
        for _ in range(BEFORE):
            whole.collect()
        save_checkpoint(tmp_path, {"collection": whole.state_dict()}, step=1)
        actions = policy.generator.get_state()
        for _ in range(AFTER):
            whole.collect()
        expected = collected(whole)
    finally:
        whole.collector.shutdown()
    resumed, policy = make_collection(ENVS[kind][1]())
    try:
        resumed.load_state_dict(load_checkpoint(tmp_path)["collection"])
        policy.generator.set_state(actions)
        for _ in range(AFTER):
            resumed.collect()
        assert_equal(collected(resumed), expected)
    finally:
        resumed.collector.shutdown()
    assert not warned and false_joints(resumed.replay_buffer) == 0


@pytest.mark.skipif(importlib.util.find_spec("gymnasium") is None, reason="gymnasium is missing")
def test_every_episode_has_a_seed_of_its_own() -> None:
    starts = []
    for seed in (3, 3, 4):
        collection, _ = make_collection(make_gym_env("Pendulum-v1", 2, max_episode_steps=STEPS), seed=seed)
        for _ in range(6):
            collection.collect()
        starts.append(collection.replay_buffer[:]["observation"][:, ::STEPS].flatten(0, 1))
    assert torch.equal(starts[0], starts[1]) and not torch.isclose(starts[0], starts[2]).all(-1).any()
    assert len(starts[0].unique(dim=0)) == len(starts[0]) == 12


@pytest.mark.parametrize("make", [partial(SerialEnv, 2, Unseeded), partial(DriftEnv, (2,))], ids=["draws", "rows"])
def test_an_env_that_its_seeds_do_not_decide_begins_new_episodes_with_a_warning(make, monkeypatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr("torchrl_pwm.data.collect.episodes.torchrl_logger.warning", warned.append)
    first, _ = make_collection(make())
    first.collect()
    resumed, _ = make_collection(make())
    resumed.load_state_dict(first.state_dict())
    assert len(warned) == 1 and "begins new episodes" in warned[0]
    resumed.collect()
    kept = resumed.replay_buffer[:]
    assert kept["next", "done"][:, STEPS - 1].all() and false_joints(resumed.replay_buffer) == 0
    assert resumed.env_steps == first.env_steps + 2 * STEPS
