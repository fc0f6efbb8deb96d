"""Batches from several replays."""

from __future__ import annotations

import pytest
import torch

from tests.trainers.tiny import write_store
from torchrl_pwm.data import ReplayMixture, TDMPC2ExperienceReplay


@pytest.fixture
def make(tmp_path):
    old, new = write_store(tmp_path / "old"), write_store(tmp_path / "new", seed=1)
    return lambda: ReplayMixture(
        [TDMPC2ExperienceReplay(root, size, slice_len=4) for root, size in ((old, 5), (new, 3))]
    )


def test_each_replay_gives_its_own_share(make):
    mixture = make()
    batch = mixture.sample()
    assert batch.shape == (8, 4) and mixture.batch_size == 8
    alone = make().replays
    assert (batch[:5] == alone[0].sample()).all() and (batch[5:] == alone[1].sample()).all()


def test_a_restored_state_goes_on_with_the_same_draws(make):
    mixture, other = make(), make()
    mixture.sample()
    other.load_state_dict(mixture.state_dict())
    assert torch.equal(mixture.sample()["observation"], other.sample()["observation"])


def test_a_replay_without_a_batch_size_is_refused(tmp_path):
    replay = TDMPC2ExperienceReplay(write_store(tmp_path / "data"), slice_len=4)
    with pytest.raises(ValueError, match="batch_size, the number of slices each adds"):
        ReplayMixture([replay])


def test_the_state_of_another_mixture_is_refused(make):
    mixture = make()
    state = mixture.state_dict()
    with pytest.raises(ValueError, match="has 1 replays, this one 2"):
        mixture.load_state_dict({"replays": state["replays"][:1]})
