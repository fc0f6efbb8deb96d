"""Rows of the replay of an online run are the consecutive steps of one env, whatever the collector."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import ReplayBuffer

from tests.envs.drift_env import DriftEnv
from torchrl_pwm.data import OnlineCollection, make_online_replay
from torchrl_pwm.envs.simulators import AnalyticEnv

KEYS = ["observation", "action", *(("next", key) for key in ("observation", "reward", "done", "terminated"))]


def make_batched(seed: int = 0) -> AnalyticEnv:
    return AnalyticEnv("double_pendulum", 2, seed=seed, episode_length=7)


def no_action(observation: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(observation[..., : 2 if observation.shape[-1] == 5 else 1])


def make_policy() -> TensorDictModule:
    return TensorDictModule(no_action, ["observation"], ["action"])


def false_joints(replay: ReplayBuffer) -> int:
    """Places of the replay [N, T] where a step does not follow from the one before, which is not done either."""
    kept: TensorDictBase = replay[:]
    broken = (kept["observation"][:, 1:] != kept["next", "observation"][:, :-1]).any(-1)
    return int((broken & ~kept["next", "done"][:, :-1, 0]).sum())


def collect(collector, batches: int = 3) -> ReplayBuffer:
    replay = make_online_replay(200, slice_len=4, batch_size=6)
    collection = OnlineCollection(collector, replay, KEYS)
    try:
        for _ in range(batches):
            collection.collect()
    finally:
        collector.shutdown()
    return replay


@pytest.mark.parametrize(
    ("make", "joined_along", "envs"), [(DriftEnv, 0, 2), (make_batched, -1, 4)], ids=["unbatched", "batched"]
)
def test_rows_of_several_processes_are_those_of_single_envs(make, joined_along, envs) -> None:
    collector = MultiSyncCollector([make, make], make_policy(), frames_per_batch=5 * envs, cat_results=joined_along)
    replay = collect(collector)
    assert replay[:].shape == (envs, 15)
    assert false_joints(replay) == 0


def test_episodes_that_a_collector_cuts_short_end_in_the_replay() -> None:
    replay = collect(Collector(make_batched(), make_policy(), frames_per_batch=10, reset_at_each_iter=True))
    assert false_joints(replay) == 0
    assert replay[:]["next", "done"].squeeze(-1).nonzero()[:, 1].tolist() == [4, 9, 14] * 2


def test_episodes_of_an_interrupted_run_end_where_the_resumed_one_begins_new_ones() -> None:
    def make(seed: int) -> OnlineCollection:
        collector = Collector(make_batched(seed), make_policy(), frames_per_batch=10)
        return OnlineCollection(collector, make_online_replay(60, slice_len=4, batch_size=6), KEYS)

    first, resumed = make(0), make(1)
    first.collect()
    resumed.load_state_dict(first.state_dict())
    for _ in range(2):
        resumed.collect()
    assert resumed.replay_buffer[:].shape == (2, 15) and false_joints(resumed.replay_buffer) == 0
    assert not first.replay_buffer[:]["next", "done"].any()


def test_workers_that_add_different_numbers_of_steps_are_refused() -> None:
    collector = MultiSyncCollector([DriftEnv, DriftEnv], make_policy(), frames_per_batch=[5, 10], cat_results=0)
    try:
        with pytest.raises(ValueError, match=r"workers .* add \[5, 10\] steps .* same frames_per_batch"):
            OnlineCollection(collector, make_online_replay(60), KEYS)
    finally:
        collector.shutdown()


def test_a_batch_that_joins_trajectories_without_an_end_is_refused() -> None:
    def swap(batch: TensorDictBase) -> TensorDictBase:
        return torch.cat([batch[:1], batch[1:]], -1)

    collector = Collector(make_batched(), make_policy(), frames_per_batch=10, postproc=swap)
    with pytest.raises(ValueError, match=r"next steps of one env, found 1 places .* without a done"):
        collect(collector)
