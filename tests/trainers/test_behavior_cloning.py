"""Behaviour cloning recovers a behaviour, whatever the units and the padding."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from tests.trainers.tiny import assert_same
from torchrl_pwm.trainers.imitation import Standardize, clone_behavior

OBSERVATION, ACTION, PADDED = 4, 2, 3
WEIGHTS = torch.tensor([[1.0, -1.0, 0.5, 0.0], [0.0, 0.5, -0.5, 1.0]])


def behavior(observation):
    return torch.tanh(observation @ WEIGHTS.T)


def pairs(count=2000, seed=0):
    draws = torch.Generator().manual_seed(seed)
    observation = torch.randn(count, OBSERVATION, generator=draws)
    padding = torch.rand(count, PADDED - ACTION, generator=draws) * 2 - 1
    return TensorDict(
        {
            "observation": torch.cat([observation, torch.zeros(count, 3)], -1),
            "action": torch.cat([behavior(observation), padding], -1),
        },
        [count],
    )


def replay_of(data, seed=0):
    replay = ReplayBuffer(storage=LazyTensorStorage(len(data)), generator=torch.Generator().manual_seed(seed))
    replay.extend(data)
    return replay


def clone(data, **options):
    return clone_behavior(
        replay_of(data), OBSERVATION, ACTION, **{"units": (32,), "updates": 1000, "lr": 3e-3, **options}
    )


def error_of(actor, observation, scale=1.0, shift=0.0):
    found = actor(TensorDict({"observation": observation * scale + shift}, [len(observation)]))["action"]
    return float((found - behavior(observation)).square().mean())


def test_a_behaviour_is_recovered_on_states_that_were_not_in_the_data():
    fresh = pairs(500, seed=1)["observation"][:, :OBSERVATION]
    assert error_of(clone(pairs()), fresh) < 2e-3
    assert error_of(clone(pairs(), updates=1), fresh) > 0.1


def test_units_and_offset_of_the_observations_do_not_matter():
    data = pairs()
    fresh = pairs(500, seed=1)["observation"][:, :OBSERVATION]
    scale, shift = torch.tensor([1e-1, 1.0, 50.0, 1e3]), torch.tensor([5.0, -1.0, 1e3, 0.0])
    data["observation"][:, :OBSERVATION] = data["observation"][:, :OBSERVATION] * scale + shift
    assert error_of(clone(data), fresh, scale, shift) < 4e-3


def test_sequences_are_as_good_as_transitions():
    data = pairs().reshape(500, 4)
    assert error_of(clone(data, batch_size=64), pairs(500, seed=1)["observation"][:, :OBSERVATION]) < 2e-3


def test_padding_of_the_actions_is_not_learnt():
    one, other = pairs(), pairs()
    other["action"][:, ACTION:] = 0.7
    assert_same(clone(one).state_dict(), clone(other).state_dict())


def test_actions_stay_in_range_far_from_the_data():
    actor = clone(pairs(), updates=50)
    far = torch.full((1, OBSERVATION), 1e12)
    found = actor(TensorDict({"observation": far}, [1]))["action"]
    assert found.shape == (1, ACTION) and found.abs().max() <= 1.0


def test_an_entry_that_hardly_varies_is_not_blown_up():
    layer = Standardize(torch.zeros(1), torch.tensor([1e-9]))
    assert layer(torch.tensor([[1e-3]])).item() == pytest.approx(1.0)
    assert layer(torch.tensor([[5.0]])).item() == 10.0


def test_same_seed_same_policy_and_torch_s_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = clone(pairs(), updates=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert_same(clone(pairs(), updates=5).state_dict(), first.state_dict())
    other = clone(pairs(), updates=5, seed=1).state_dict()
    assert any(not torch.equal(other[name], value) for name, value in first.state_dict().items())


def test_a_nan_in_the_data_stops_the_fit_and_names_the_entry():
    data = pairs(50)
    data["action"][::2, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"Update 1 of the behaviour cloning.*non-finite action"):
        clone(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("statistics_size", [1, 10_000])
def test_an_observation_that_is_not_finite_is_named_whether_or_not_it_is_in_the_statistics(value, statistics_size):
    data = pairs(50)
    data["observation"][7, 1] = value
    with pytest.raises(FloatingPointError, match=r"Update \d+ of the behaviour cloning.*non-finite observation in"):
        clone(data, statistics_size=statistics_size)


def test_a_gradient_that_overflows_stops_the_fit_before_the_step():
    tanh = torch.nn.Tanh.forward

    def overflowing(self, x):
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * torch.inf)
        return tanh(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Tanh, "forward", overflowing)
        with pytest.raises(FloatingPointError, match=r"Update 1 .*loss_bc 0\.\d+, gradient norm (nan|inf)"):
            clone(pairs(50))


def test_wrong_sizes_and_numbers_are_refused():
    with pytest.raises(ValueError, match=r"sizes \(7, 3\), the task of \(4, 6\)"):
        clone_behavior(replay_of(pairs(10)), OBSERVATION, 6)
    for name in ("updates", "batch_size", "statistics_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
            clone(pairs(10), **{name: 0})
