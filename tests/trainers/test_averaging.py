"""The moving average of a policy's weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrl_pwm.trainers.averaging import PolicyAverage


def network_of(*weights: float) -> nn.Linear:
    network = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([weights]))
    return network


def test_the_average_is_that_of_a_geometric_series():
    network = network_of(0.0)
    average = PolicyAverage(network, decay=0.9)
    expected = 0.0
    for step in range(1, 20):
        nn.init.constant_(network.weight, float(step))
        average.update()
        expected = 0.9 * expected + 0.1 * step
    with average.applied():
        torch.testing.assert_close(network.weight.item(), expected, atol=1e-5, rtol=0)


def test_a_decay_of_zero_follows_the_network():
    network = network_of(1.0, 2.0)
    average = PolicyAverage(network, decay=0.0)
    nn.init.constant_(network.weight, 5.0)
    average.update()
    with average.applied():
        assert (network.weight == 5.0).all()


def test_the_network_has_its_own_weights_again_after_an_error():
    network = network_of(1.0)
    average = PolicyAverage(network, decay=0.5)
    nn.init.constant_(network.weight, 3.0)
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        assert network.weight.item() == 1.0
        raise RuntimeError("inside")
    assert network.weight.item() == 3.0


def test_a_loaded_average_goes_on_alike():
    network = network_of(1.0)
    first, second = PolicyAverage(network, 0.5), PolicyAverage(network, 0.5)
    nn.init.constant_(network.weight, 3.0)
    first.update()
    second.load_state_dict(first.state_dict())
    for average in (first, second):
        average.update()
    values = []
    for average in (first, second):
        with average.applied():
            values.append(network.weight.item())
    assert values[0] == values[1] == 2.5


def test_restoring_leaves_the_average_in_the_network():
    network = network_of(1.0)
    average = PolicyAverage(network, decay=0.5)
    nn.init.constant_(network.weight, 3.0)
    average.update()
    average.restore()
    assert network.weight.item() == 2.0


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(decay: float):
    with pytest.raises(ValueError, match=rf"at least 0 and below 1, found {decay}"):
        PolicyAverage(network_of(1.0), decay)
