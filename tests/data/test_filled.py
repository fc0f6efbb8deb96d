"""The state of a replay buffer holds its steps and nothing beside them, and gives the same buffer back."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import ListStorage, ReplayBuffer

from torchrl_pwm._utils.checkpoint import load_checkpoint, save_checkpoint
from torchrl_pwm.data import make_online_replay
from torchrl_pwm.data.filled import filled_state, whole_state

SIZE = 348  # of an observation of Humanoid-v5


def steps(envs, time, size=3):
    following = {"observation": torch.randn(envs, time, size), "done": torch.rand(envs, time, 1) < 0.2}
    return TensorDict({"observation": torch.randn(envs, time, size), "next": following}, [envs, time])


def test_a_checkpoint_is_as_large_as_the_steps_that_were_made(tmp_path):
    replay = make_online_replay(1_000_000, slice_len=4, batch_size=2)
    replay.extend(steps(8, 48, SIZE))
    file = save_checkpoint(tmp_path, {"replay": filled_state(replay)}, step=0)
    assert file.stat().st_size < 1.1 * 384 * 4 * 2 * SIZE


def test_saving_holds_no_copy_of_the_steps():
    replay = make_online_replay(1000, slice_len=4, batch_size=2)
    replay.extend(steps(8, 48))
    saved = filled_state(replay)["_storage"]["_storage"]["observation"]
    assert saved.data_ptr() == replay.storage[:]["observation"].data_ptr()
    assert saved.untyped_storage().nbytes() == 8 * 48 * 3 * 4


@pytest.mark.parametrize("batches", [1, 4, 5, 7], ids=["a fifth", "four fifths", "full", "overwritten"])
def test_a_buffer_goes_on_as_the_saved_one(batches, tmp_path):
    replay = make_online_replay(100, slice_len=3, batch_size=4)
    for _ in range(batches):
        replay.extend(steps(4, 5))
    replay.sample()
    save_checkpoint(tmp_path, filled_state(replay), step=0)
    other = make_online_replay(100, slice_len=3, batch_size=4)
    other.load_state_dict(whole_state(load_checkpoint(tmp_path)))
    for _ in range(6):
        assert len(replay) == len(other) and (replay.sample() == other.sample()).all()
        further = steps(4, 5)
        replay.extend(further.clone())
        other.extend(further)
    assert (replay[:] == other[:]).all()


def test_a_whole_state_of_earlier_checkpoints_is_loaded_as_it_is():
    replay = make_online_replay(100, slice_len=3, batch_size=4)
    replay.extend(steps(4, 5))
    state = replay.state_dict()
    other = make_online_replay(100, slice_len=3, batch_size=4)
    other.load_state_dict(whole_state(state))
    assert (replay.sample() == other.sample()).all()


def test_an_empty_buffer_and_other_storages_are_kept_whole():
    assert whole_state(filled_state(make_online_replay(100)))["_storage"]["initialized"] is False
    listed = ReplayBuffer(storage=ListStorage(10), batch_size=2)
    listed.extend([TensorDict({"a": torch.ones(1)}, []) for _ in range(3)])
    assert whole_state(filled_state(listed)).keys() == listed.state_dict().keys()
