"""V - G: what critics promise minus what was earned."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from torchrl_pwm import PWMWorldModel
from torchrl_pwm.evaluation.value_gaps import closed_returns, value_gap

FOUR = TensorDictModule(lambda z: torch.full((2, *z.shape[:-1], 1), 4.0), ["latent"], ["state_value"])


def episodes(reward, terminated):
    """Two episodes: of two steps with this reward, and of one step, filled up with a reward that must not count."""
    td = TensorDict({"observation": torch.zeros(2, 2, 3)}, [2, 2])
    rewards = torch.tensor([[reward, reward], [reward, 1e3]]).unsqueeze(-1)
    ends = torch.tensor([[False, terminated], [terminated, False]]).unsqueeze(-1)
    td["next"] = td.clone().update({"reward": rewards, "terminated": ends, "done": ends})
    td["collector"] = TensorDict({"mask": torch.tensor([[True, True], [True, False]])}, [2, 2])
    return td


def gap(reward, terminated, space="raw", scale=1.0, **options):
    model = PWMWorldModel(3, 1, latent_dim=16, units=(8,), **options)
    if model.reward_moments is not None:
        model.reward_moments.mean.fill_(1.0)
        model.reward_moments.var.fill_(4.0)
    return value_gap(model, FOUR, episodes(reward, terminated), gamma=0.5, reward_space=space, reward_scale=scale)


def test_an_episode_that_was_cut_off_is_closed_with_the_critics_value_or_with_nothing():
    found = gap(1.0, terminated=False)
    # G of the steps: 1 + 0.5 (1 + 0.5 * 4), 1 + 0.5 * 4, and 1 + 0.5 * 4 of the short one; with nothing 1.5, 1, 1
    assert found.closed == pytest.approx(4.0 - (2.5 + 3.0 + 3.0) / 3)
    assert found.open == pytest.approx(4.0 - (1.5 + 1.0 + 1.0) / 3)
    assert (found.value, found.cut) == (4.0, 1.0) and found.earned == pytest.approx(8.5 / 3)


def test_one_that_terminated_has_earned_all_it_could():
    found = gap(1.0, terminated=True)
    assert found.closed == found.open == pytest.approx(4.0 - 3.5 / 3) and found.cut == 0.0


def test_returns_go_backwards_from_the_tail():
    reward = torch.tensor([[1.0, 2.0, 4.0]])
    assert closed_returns(reward, torch.tensor([8.0]), gamma=0.5).tolist() == [[4.0, 6.0, 8.0]]
    assert closed_returns(reward, torch.tensor([0.0]), gamma=1.0).tolist() == [[7.0, 6.0, 4.0]]


def test_g_is_in_the_space_that_the_critics_sum():
    raw, scalar = gap(math.e - 1, True, num_bins=11), gap(math.e - 1, True, "symlog")
    assert raw.closed == scalar.closed == raw.raw == scalar.raw  # a scalar head has one space alone
    symlog = gap(math.e - 1, True, "symlog", num_bins=11)
    assert symlog.closed == pytest.approx(gap(1.0, True).closed) and symlog.raw is None
    # (5 - 1) / 2 = 2 in units of the running moments
    normalised = gap(5.0, True, "symlog", normalize_rewards=True)
    assert normalised.closed == pytest.approx(gap(2.0, True).closed, rel=1e-4)
    assert normalised.raw == pytest.approx(2 * normalised.closed, rel=1e-4)
    scaled = gap(5.0, True, scale=0.2)
    assert scaled.closed == pytest.approx(gap(1.0, True).closed) and scaled.raw == pytest.approx(5 * scaled.closed)
