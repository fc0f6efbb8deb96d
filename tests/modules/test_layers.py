from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchrl_pwm import NormedLinear, SimNorm
from torchrl_pwm.modules.layers import make_mlp, run_from_first_linear


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 3, 16)])
def test_simnorm_puts_every_group_on_a_simplex(shape):
    groups = SimNorm(8)(10 * torch.randn(shape)).unflatten(-1, (-1, 8))
    assert groups.ge(0).all()
    torch.testing.assert_close(groups.sum(-1), torch.ones(groups.shape[:-1]))


def test_simnorm_groups_neighbouring_features():
    x = torch.randn(6)
    expected = torch.cat([x[:3].softmax(-1), x[3:].softmax(-1)])
    torch.testing.assert_close(SimNorm(3)(x), expected)


def test_simnorm_refuses_features_that_do_not_split_into_groups():
    with pytest.raises(ValueError, match="multiple of 8 features, found 12"):
        SimNorm(8)(torch.zeros(2, 12))


@pytest.mark.parametrize(
    ("activation", "expected"), [(None, F.mish), (SimNorm(2), SimNorm(2)), (nn.Tanh(), torch.tanh)]
)
def test_normed_linear_normalises_before_the_activation(activation, expected):
    layer = NormedLinear(3, 4, activation)
    nn.init.normal_(layer.ln.weight)
    nn.init.normal_(layer.ln.bias)
    x = torch.randn(5, 3)
    linear = x @ layer.weight.T + layer.bias
    centred = linear - linear.mean(-1, keepdim=True)
    normed = centred / (linear.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), expected(normed * layer.ln.weight + layer.ln.bias))


def test_mlp_ends_in_a_plain_linear_layer_unless_told_otherwise():
    plain, normed = make_mlp(3, (5, 6), 8), make_mlp(3, (5, 6), 8, SimNorm(4))
    assert type(plain[-1]) is nn.Linear
    assert isinstance(normed[-1], NormedLinear)
    assert [tuple(layer.weight.shape) for layer in plain] == [(5, 3), (6, 5), (8, 6)]


@pytest.mark.parametrize("units", [(), (7,), (7, 6)])
def test_a_constant_share_of_the_input_can_be_folded_into_the_first_bias(units):
    mlp = make_mlp(3 + 2, units, 4)
    x, constant = torch.randn(6, 3), torch.randn(6, 2)
    weight, shared = mlp[0].weight.split([3, 2], 1)
    folded = run_from_first_linear(mlp, x, weight, constant @ shared.T + mlp[0].bias)
    torch.testing.assert_close(folded, mlp(torch.cat([x, constant], -1)))
