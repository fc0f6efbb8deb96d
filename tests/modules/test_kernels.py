"""The kernels for CPUs: Mish, SimNorm's softmax, and whole MLPs as one autograd function, beside torch's functions."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from torchrl_pwm import NormedLinear, PWMWorldModel, SimNorm, make_pwm_actor
from torchrl_pwm.modules import kernels
from torchrl_pwm.modules.kernels import mish, simplex
from torchrl_pwm.modules.layers import MLP, Mish, make_mlp, run_from_first_linear

# Torch says so whenever oneDNN is switched.
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")

ROWS = 300  # enough for the kernels, and for more than one piece of the cache at 256 features


def by_torch():
    """A context in which everything takes torch's own functions."""
    return torch.backends.mkldnn.flags(enabled=False)


def world_model_mlp(last=None):
    return make_mlp(24, (256, 64), 48, last)


def actor_mlp():
    return MLP(nn.Linear(24, 256), Mish(), nn.LayerNorm(256), nn.Linear(256, 3))


NETWORKS = {
    "world model": world_model_mlp,
    "encoder": lambda: world_model_mlp(SimNorm(8)),
    "latents without groups": lambda: world_model_mlp(Mish()),
    "actor": actor_mlp,
    "norm without parameters": lambda: MLP(nn.Linear(24, 99, bias=False), nn.Mish(), nn.LayerNorm(99, 1e-3, False)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    net = NETWORKS[request.param]()
    for param in net.parameters():
        nn.init.normal_(param, std=0.3)
    return net


def with_gradients(net, x, weights=None):
    x = x.clone().requires_grad_()
    result = net(x)
    weights = torch.linspace(-1, 1, result.numel(), dtype=x.dtype).view_as(result) if weights is None else weights
    return [result, *torch.autograd.grad((result * weights).sum(), [x, *net.parameters()])]


def nodes(function):
    """How many operations a graph has, leaves and views not counted."""
    seen, rest = set(), [function]
    while rest:
        node = rest.pop()
        if node is not None and node not in seen:
            seen.add(node)
            rest += [following for following, _ in node.next_functions]
    return sum(not any(word in node.name() for word in ("AccumulateGrad", "TBackward", "View")) for node in seen)


def test_mish_is_that_of_torch_to_rounding_in_float64_with_its_slope():
    x = torch.linspace(-60, 60, 20_001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(mish(x).sum(), x)
    (expected,) = torch.autograd.grad(F.mish(x).sum(), x)
    torch.testing.assert_close(mish(x), F.mish(x), rtol=1e-15, atol=4e-15)
    torch.testing.assert_close(slope, expected, rtol=0.0, atol=5e-15)


def test_mish_is_as_exact_in_float32_as_torch_s():
    x = 4 * torch.randn(50_000)
    true = F.mish(x.double())
    ours, theirs = ((value - true).abs().max() for value in (mish(x), F.mish(x)))
    assert ours < 2 * theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mish_neither_overflows_nor_loses_its_tail(dtype):
    x = torch.tensor([-1e30, -1e4, -100.0, -80.0, -30.0, 0.0, 30.0, 1e4, 1e30, torch.inf, torch.nan], dtype=dtype)
    x = x.repeat(1000).requires_grad_()
    found, expected = mish(x), F.mish(x)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-40)
    slopes = [torch.autograd.grad(value.nan_to_num().sum(), x)[0] for value in (found, expected)]
    assert torch.equal(slopes[0].isfinite(), slopes[1].isfinite())


@pytest.mark.parametrize("function", [mish, lambda x: simplex(x, 8)])
def test_first_and_second_derivatives_are_right(function, monkeypatch):
    monkeypatch.setattr("torchrl_pwm.modules.kernels._SMALLEST", 1)
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_groups_of_any_layout_are_normalised_as_by_torch():
    x = (100 * torch.randn(64, 4, 96)).transpose(0, 1).requires_grad_()
    weights = torch.randn(4, 64, 96)
    found, expected = simplex(x, 8), x.unflatten(-1, (-1, 8)).softmax(-1).flatten(-2)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad((value * weights).sum(), x)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_a_network_is_one_node_of_the_graph_with_the_values_and_gradients_of_torch(network):
    x = torch.randn(ROWS, 24)
    found = with_gradients(network, x)
    with by_torch():
        expected = with_gradients(network, x)
    assert nodes(found[0].grad_fn) == 1
    assert nodes(expected[0].grad_fn) > 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max().clamp(min=1.0)))


def test_in_float64_a_network_agrees_with_torch_to_rounding(network):
    network.double()
    x = torch.randn(3, ROWS // 3, 24, dtype=torch.float64)
    found = with_gradients(network, x)
    with by_torch():
        expected = with_gradients(network, x)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12 * float(theirs.abs().max().clamp(min=1.0)))


def test_gradients_of_a_network_can_be_differentiated_again(network):
    network.double()
    x = torch.randn(ROWS, 24, dtype=torch.float64)

    def penalty():
        rows = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(rows).square().sum(), rows, create_graph=True)
        return torch.autograd.grad(slope.square().mean(), list(network.parameters()), allow_unused=True)

    found = penalty()
    with by_torch():
        expected = penalty()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10 * float(theirs.abs().max()))


def test_an_input_that_depends_on_the_weights_has_the_right_second_derivative():
    net = MLP(nn.Linear(64, 64), Mish(), nn.LayerNorm(64)).double()
    x = torch.randn(ROWS, 64, dtype=torch.float64)

    def twice():
        (slope,) = torch.autograd.grad(net(x @ net[0].weight).sin().sum(), net[0].weight, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), net[0].weight)[0]

    found = twice()
    with by_torch():
        torch.testing.assert_close(found, twice(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(64,), (ROWS, 64), (1, ROWS, 64), (4, 1, 64)])
def test_a_bias_of_rows_has_the_gradients_of_torch(shape):
    torch.manual_seed(0)
    mlp, x = make_mlp(24 + 5, (64,), 7), torch.randn(4, ROWS, 24)
    weight, bias = torch.randn(64, 24, requires_grad=True), torch.randn(shape, requires_grad=True)

    def gradients():
        result = run_from_first_linear(mlp, x, weight, bias)
        return [result, *torch.autograd.grad(result.square().mean(), [weight, bias])]

    found = gradients()
    with by_torch():
        expected = gradients()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_frozen_weights_receive_no_gradient_and_pass_it_on():
    net = world_model_mlp(SimNorm(8)).requires_grad_(False)
    x = torch.randn(ROWS, 24, requires_grad=True)
    (net(x)[:, 0]).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(param.grad is None for param in net.parameters())


def test_without_gradients_the_values_are_the_same(network):
    x = torch.randn(ROWS, 24)
    expected = network(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


def test_function_transforms_give_what_torch_gives(network):
    x = torch.randn(3, ROWS, 24)
    params = dict(network.named_parameters())

    def loss(params, rows):
        return torch.func.functional_call(network, params, (rows,)).square().mean()

    expected = network(x)
    torch.testing.assert_close(torch.func.vmap(network)(x), expected, rtol=1e-4, atol=1e-4)
    gradients = torch.func.grad(loss)(params, x[0])
    (of_bias,) = torch.autograd.grad(loss(params, x[0]), params["0.weight"])
    torch.testing.assert_close(gradients["0.weight"], of_bias, rtol=1e-3, atol=1e-4)
    tangent = torch.randn_like(x)
    _, slope = torch.func.jvp(network, (x,), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(network(forward_ad.make_dual(x, tangent))).tangent
    torch.testing.assert_close(slope, dual)


def test_functional_call_runs_on_the_weights_that_it_is_given(network):
    x = torch.randn(ROWS, 24)
    zeros = {name: torch.zeros_like(param) for name, param in network.named_parameters()}
    result = torch.func.functional_call(network, zeros, (x,))
    assert not torch.equal(result, network(x))
    assert torch.equal(result, result[:1].expand_as(result))


def test_under_autocast_products_are_in_bfloat16_and_what_comes_out_is_as_wide_as_what_goes_in():
    x, network = torch.randn(ROWS, 24), actor_mlp()
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        result = network(x)
    assert result.dtype == torch.float32
    error = (result - exact).norm() / exact.norm()
    assert 1e-4 < error < 2e-2


def test_a_compiled_network_is_one_graph_with_the_same_values(network):
    x = torch.randn(ROWS, 24)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-4)


def test_an_exported_network_takes_torch_s_functions(network):
    rows = torch.export.Dim("rows")
    x = torch.randn(ROWS, 24)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: rows},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("mkldnn" in name for name in called)
    more = torch.randn(2 * ROWS, 24)
    torch.testing.assert_close(program.module()(more), network(more), rtol=1e-4, atol=1e-4)


def test_a_copy_and_a_state_dict_give_the_same_values(network):
    x = torch.randn(ROWS, 24)
    copied = copy.deepcopy(network)
    assert torch.equal(copied(x), network(x))
    for param in copied.parameters():
        nn.init.normal_(param)
    copied.load_state_dict(network.state_dict())
    assert torch.equal(copied(x), network(x))


@pytest.mark.parametrize("part", ["0", "0.ln", "0.act"])
def test_hooks_of_a_layer_are_called(part):
    net, seen = world_model_mlp(), []
    net.get_submodule(part).register_forward_hook(lambda module, args, result: seen.append(result.shape))
    net(torch.randn(ROWS, 24))
    assert seen == [(ROWS, 256)]


def test_other_layers_and_parametrisations_run_as_they_are():
    x = torch.randn(ROWS, 24)
    tanh = make_mlp(24, (256,), 8)
    tanh[0].act = nn.Tanh()
    torch.testing.assert_close(tanh(x), tanh[1](torch.tanh(tanh[0].ln(F.linear(x, tanh[0].weight, tanh[0].bias)))))
    plain = make_mlp(24, (256,), 8)
    normed = copy.deepcopy(plain)
    nn.utils.parametrizations.spectral_norm(normed[1], n_power_iterations=50)
    assert torch.linalg.matrix_norm(normed[1].weight, 2) < 1.01 < torch.linalg.matrix_norm(5 * plain[1].weight, 2)
    torch.testing.assert_close(normed(x), F.linear(plain[0](x), normed.eval()[1].weight, normed[1].bias))


def test_wrong_sizes_and_dtypes_are_refused_as_by_torch():
    with pytest.raises(RuntimeError, match="shapes"):
        world_model_mlp()(torch.randn(ROWS, 23))
    with pytest.raises(RuntimeError, match="dtype"):
        world_model_mlp()(torch.randn(ROWS, 24, dtype=torch.float64))
    with pytest.raises(ValueError, match="multiple of 8 features, found 60"):
        make_mlp(24, (256,), 60, SimNorm(8))(torch.randn(ROWS, 24))


def test_an_empty_batch_has_an_empty_result(network):
    assert network(torch.randn(0, 24)).shape[0] == 0
    assert network(torch.randn(2, 0, 24)).shape[:2] == (2, 0)


def test_default_device_and_dtype_change_nothing():
    x = torch.randn(ROWS, 256)
    expected = F.mish(x)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            torch.testing.assert_close(mish(x), expected)
    finally:
        torch.set_default_dtype(before)


def test_networks_on_meta_have_shapes_alone():
    net = world_model_mlp(SimNorm(8)).to("meta")
    assert net(torch.empty(ROWS, 24, device="meta")).shape == (ROWS, 48)


def test_an_untouched_normed_linear_alone_has_the_values_of_torch():
    layer, x = NormedLinear(24, 256), torch.randn(ROWS, 24)
    torch.testing.assert_close(layer(x), F.mish(layer.ln(F.linear(x, layer.weight, layer.bias))), rtol=1e-4, atol=1e-5)


def test_model_and_actor_agree_with_torch_through_an_imagined_rollout():
    torch.manual_seed(0)
    model = PWMWorldModel(9, 3, latent_dim=64, units=(128, 128), num_tasks=4, task_dim=8, num_bins=21)
    head = make_pwm_actor(64, 3, units=(128, 64)).get_submodule("module.0.module")
    observation, task = torch.randn(ROWS, 9), torch.arange(ROWS) % 4

    def rollout():
        latent, context = model.encode_observation(observation, task), model.task_context(task)
        for _ in range(3):
            latent = model.next_latent(latent, head(latent)[0].tanh(), context)
        reward = model.decode_reward(model.reward_logits(latent, head(latent)[0], context), "symlog")
        return [
            latent,
            reward,
            *torch.autograd.grad((latent.sum(-1) + reward.squeeze(-1)).mean(), head.mu_net[0].weight),
        ]

    found = rollout()
    with by_torch():
        expected = rollout()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_onednn_multiplies_by_dense_matrices_alone_where_a_network_reads_one_step_of_many_sequences(monkeypatch):
    """With gaps between the rows of the second matrix its product takes some hundred times as long."""
    torch.manual_seed(0)
    network, multiply, dense = world_model_mlp(), kernels._onednn() or F.linear, []

    def spied(left, right, bias):
        dense.append(right.is_contiguous() or right.T.is_contiguous())
        return multiply(left, right, bias)

    monkeypatch.setattr(kernels, "_onednn", lambda: spied)
    step = torch.randn(ROWS, 8, 24)[:, 3]
    network(step).square().mean().backward()
    assert len(dense) >= 5 and all(dense)
    gradient = network[0].weight.grad.clone()
    network.zero_grad()
    with by_torch():
        network(step).square().mean().backward()
    torch.testing.assert_close(gradient, network[0].weight.grad)
