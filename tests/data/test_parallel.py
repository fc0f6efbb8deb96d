"""Replay of envs side by side: consecutive steps of one env, never across the newest step."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from tests.trainers.tiny import assert_same
from torchrl_pwm.data import ParallelSliceSampler, extend_with_recorded, make_online_replay


def steps(first: int, count: int, envs: int = 4) -> TensorDict:
    """Steps [envs, count] numbered from ``first``, with 1000 added for each env."""
    return TensorDict({"step": first + torch.arange(count) + 1000 * torch.arange(envs)[:, None]}, [envs, count])


@pytest.mark.parametrize("batches", [1, 2, 3, 4, 9])
def test_slices_are_consecutive_steps_of_one_env_before_and_after_the_ring_is_full(batches):
    replay = make_online_replay(100, slice_len=5, batch_size=64, seed=3)
    for number in range(batches):
        replay.extend(steps(8 * number, 8))
    drawn = torch.cat([replay.sample()["step"] for _ in range(20)])
    assert drawn.shape == (1280, 5)
    assert (drawn.diff(dim=1) == 1).all()
    newest = 8 * batches - 1
    kept = range(max(0, newest - 24), newest + 1)
    starts = {int(x) for x in drawn[:, 0].flatten() % 1000}
    assert starts == set(list(kept)[: len(kept) - 4])
    assert {int(x) for x in drawn[:, 0] // 1000} == {0, 1, 2, 3}


def test_a_seed_repeats_and_a_state_dict_resumes():
    def filled(seed):
        replay = make_online_replay(100, slice_len=5, batch_size=8, seed=seed)
        for number in range(6):
            replay.extend(steps(8 * number, 8))
        return replay

    first, second, other = filled(1), filled(1), filled(2)
    assert (first.sample()["step"] == second.sample()["step"]).all()
    assert (first.sample()["step"] != other.sample()["step"]).any()
    resumed = make_online_replay(100, slice_len=5, batch_size=8, seed=7)
    resumed.load_state_dict(first.state_dict())
    for _ in range(3):
        assert (first.sample()["step"] == resumed.sample()["step"]).all()
    first.extend(steps(48, 8))
    resumed.extend(steps(48, 8))
    assert (first.sample()["step"] == resumed.sample()["step"]).all()


def test_too_few_steps_are_refused():
    replay = make_online_replay(100, slice_len=5, batch_size=8)
    replay.extend(steps(0, 4))
    with pytest.raises(ValueError, match="No slice of 5 steps fits into the 4 steps that 4 envs"):
        replay.sample()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        ParallelSliceSampler(0)
    with pytest.raises(ValueError, match="slice_len=16 steps, found 10"):
        make_online_replay(10)
    flat = ReplayBuffer(storage=LazyTensorStorage(10), sampler=ParallelSliceSampler(2), batch_size=4)
    flat.extend(TensorDict({"step": torch.arange(5)}, [5]))
    with pytest.raises(ValueError, match="ndim=2"):
        flat.sample()
    replay = make_online_replay(100, slice_len=5, batch_size=8)
    replay.extend(steps(0, 8))
    with pytest.raises(ValueError, match="multiple of slice_len=5, found 7"):
        replay.sample(7)


def test_recorded_steps_lie_one_after_the_other_and_end_there():
    replay = make_online_replay(200, slice_len=4, batch_size=16)
    step = torch.arange(10).expand(6, 10) + 100 * torch.arange(6)[:, None]
    recorded = TensorDict({"step": step, "next": {"done": torch.zeros(6, 10, 1, dtype=torch.bool)}}, [6, 10])
    extend_with_recorded(replay, recorded, num_envs=2)
    replay.extend(
        TensorDict(
            {"step": -torch.ones(2, 3, dtype=torch.int64), "next": {"done": torch.zeros(2, 3, 1).bool()}}, [2, 3]
        )
    )
    assert len(replay) == 66
    sample = replay.sample()
    ends = sample["next", "done"].squeeze(-1)[:, :-1]
    follows = sample["step"].diff(dim=1) == 1
    own = sample["step"][:, 1:] == -1
    assert (follows | ends | own).all() and ends.any()
    assert not recorded["next", "done"].any()
    with pytest.raises(ValueError, match="N a multiple of the 4 envs"):
        extend_with_recorded(replay, recorded, num_envs=4)


def test_steps_with_a_number_that_is_not_finite_are_refused_and_nothing_of_them_is_written():
    replay = make_online_replay(100, slice_len=2, batch_size=2)
    good = TensorDict({"observation": torch.randn(3, 5, 2), "next": {"reward": torch.randn(3, 5, 1)}}, [3, 5])
    replay.extend(good)
    before, written = replay[:].clone(), replay.writer.state_dict()
    bad = good.clone()
    bad["next", "reward"][2, 3] = torch.inf
    bad["observation"][1, 4, 0] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"\('next', 'reward'\) is inf in env 2 at step 3 of a batch of \[3, 5\]"
    ):
        replay.extend(bad)
    with pytest.raises(FloatingPointError, match=r"observation is nan in env 1 at step 0"):
        replay.add(bad[:, 4])
    assert_same(replay[:].to_dict(), before.to_dict())
    assert replay.writer.state_dict() == written
    bad["next", "done"] = torch.zeros(3, 5, 1, dtype=torch.bool)
    with pytest.raises(FloatingPointError, match=r"recorded data .*\('next', 'reward'\) is inf in row 2 at step 3"):
        extend_with_recorded(replay, bad, num_envs=1)
    assert len(replay) == 15
