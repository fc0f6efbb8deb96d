"""Networks that run on other weights than their own: on detached ones, and on those of a loss."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_pwm import PWMWorldModel, make_value_ensemble
from torchrl_pwm.modules.frozen import frozen, swapped


class Recurrent(nn.Module):
    """A recurrent layer, which keeps its weights in a list too, beside a shared and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.gain = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.gain * self.second(self.first(self.gru(x)[0]))


NETWORKS = {
    "MLP": lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
    "recurrent": Recurrent,
    "ensemble": lambda: make_value_ensemble(4, units=(8,)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def other_weights(network):
    """Parameters and buffers of the same shapes."""
    return TensorDict.from_module(network).data.named_apply(
        lambda name, value: value.clone() if name == "seen" else nn.Parameter(2 * value + 0.1)
    )


def called(network, x):
    return network(latent=x)[-1] if hasattr(network, "in_keys") else network(x)


def test_gradients_pass_a_frozen_network_and_none_reaches_its_weights(network):
    x = torch.randn(3, 4, requires_grad=True)
    expected = called(network, x)
    with frozen(network):
        found = called(network, x)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(param.grad is None for param in network.parameters())


def test_afterwards_a_network_has_its_own_weights_again_even_after_an_error(network):
    before = dict(network.named_parameters())
    for context in (lambda: frozen(network), lambda: swapped(network, TensorDict.from_module(network).clone())):
        with pytest.raises(KeyError), context():
            raise KeyError
        after = dict(network.named_parameters())
        assert list(after) == list(before)
        assert all(after[name] is before[name] for name in before)
        assert all(param.requires_grad for param in network.parameters())


def test_gradients_reach_the_weights_that_a_network_was_given(network):
    x = torch.randn(3, 4)
    given = other_weights(network)
    own = called(network, x)
    with swapped(network, given):
        found = called(network, x)
    assert not torch.equal(found, own)
    found.square().sum().backward()
    assert all(param.grad is None for param in network.parameters())
    assert sum(weight.grad is not None for weight in given.values(True, True)) > 1


def test_frozen_networks_run_on_given_weights_without_gradients_to_them(network):
    given = other_weights(network)
    x = torch.randn(3, 4, requires_grad=True)
    with swapped(network, given):
        expected = called(network, x)
    with frozen(network, given):
        found = called(network, x)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    assert all(weight.grad is None for weight in given.values(True, True))


def test_what_a_frozen_network_counts_in_a_buffer_stays():
    network = Recurrent()
    with frozen(network):
        network(torch.randn(3, 4))
    assert network.seen == 1


def test_a_frozen_model_can_be_frozen_again_and_be_compiled():
    model = PWMWorldModel(5, 2, latent_dim=16, units=(16,))
    latent, action = torch.rand(3, 16, requires_grad=True), torch.zeros(3, 2)
    expected = model.next_latent(latent, action)

    def step(latent, action):
        with frozen(model), frozen(model):
            return model.next_latent(latent, action)

    for function in (step, torch.compile(step, backend="aot_eager")):
        found = function(latent, action)
        torch.testing.assert_close(found, expected)
        found[:, 0].sum().backward()
        assert all(param.grad is None for param in model.parameters())
