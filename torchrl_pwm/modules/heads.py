"""K MLPs of one shape as one: parameters along a first axis, their layers as batched matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrl_pwm.modules.kernels import mish, simplex, suits
from torchrl_pwm.modules.stacks import Form, Layer, as_wide, run

__all__ = ["HeadChoice", "HeadsContext", "StackedLinear", "StackedMLP", "run_stacked"]

#: Which of K heads a step is of: all of them and their mean, each with states of its own, or one for each state.
HeadChoice = Literal["mean", "each", "one"]

_LARGE = 1 << 15  # numbers of a network's widest layer that make one after the other as fast as a batched product


class StackedLinear(nn.Module):
    """Linear maps of K networks, each followed by what its ``form`` says: ``[K, *, I]`` to ``[K, *, O]``.

    The entries of its state dict are those of one network's layer, with a first axis K.
    """

    def __init__(self, num_nets: int, in_features: int, out_features: int, form: Form) -> None:
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.empty(num_nets, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_nets, out_features))
        self.ln = _StackedNorm(num_nets, out_features) if form.order else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """TD-MPC2's first values: truncated normal weights (std 0.02), zero biases, neutral norms."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        if self.ln is not None:
            nn.init.ones_(self.ln.weight)
            nn.init.zeros_(self.ln.bias)

    def layer(self) -> Layer:
        """Its form and tensors, for :func:`run_stacked`."""
        norm = self.ln
        return Layer(self.form, self.weight, self.bias, *((norm.weight, norm.bias) if norm is not None else ()))

    def forward(self, x: Tensor) -> Tensor:
        return run_stacked(x, [self.layer()])

    def extra_repr(self) -> str:
        nets, out_features, in_features = self.weight.shape
        return f"num_nets={nets}, in_features={in_features}, out_features={out_features}, then={self.form.order!r}"


class _StackedNorm(nn.Module):
    """Gains and shifts [K, O] of K layer normalisations."""

    def __init__(self, num_nets: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_nets, features))
        self.bias = nn.Parameter(torch.zeros(num_nets, features))


class StackedMLP(nn.Sequential):
    """K of :func:`.make_mlp` at once: ``[K, *, I]`` to ``[K, *, O]``, no network entering another's numbers.

    Args:
        num_nets (int): number of networks K.
        in_features, out_features (int): sizes I and O.
        units (sequence of int): hidden layers, each linear, layer normalisation and Mish.
        last (Form): what follows the last linear map. Default: nothing.

    Examples:
        >>> import torch
        >>> StackedMLP(4, 3, (8,), 2)(torch.randn(4, 5, 3)).shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self, num_nets: int, in_features: int, units: Sequence[int], out_features: int, last: Form | None = None
    ) -> None:
        sizes = [in_features, *units]
        hidden = [StackedLinear(num_nets, i, o, Form("norm_mish")) for i, o in pairwise(sizes)]
        super().__init__(*hidden, StackedLinear(num_nets, sizes[-1], out_features, last or Form()))

    def layers(self) -> list[Layer]:
        """What :func:`run_stacked` needs to run these networks."""
        return [layer.layer() for layer in self if isinstance(layer, StackedLinear)]

    def draw_order(self) -> Tensor:
        """A random order [K] of the networks, from torch's generator of their device."""
        first: StackedLinear = self[0]  # type: ignore[assignment]
        return torch.rand(len(first.weight), device=first.weight.device).argsort()

    def forward(self, x: Tensor) -> Tensor:
        return run_stacked(x, self.layers())


def run_stacked(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """``[K, *, I]`` to ``[K, *, O]`` by K networks.

    On a CPU large batches go one network after the other through :func:`.stacks.run`: a batched product would not be
    faster.

    Args:
        x: [K, *, I].
        layers: of all networks at once, each tensor with a first axis K; the first bias is [K, O], or [K, *, O] that
            broadcasts to the batch.
    """
    nets, lead = len(x), x.shape[1:-1]
    if suits(x, _LARGE * nets, max(layer.weight.shape[1] for layer in layers) / x.shape[-1]):
        x = x.contiguous()  # the gradient of a weight takes a hundred times longer from rows that are not
        # unbind, since the gradient of an index is a zero tensor of the whole size
        singles = zip(*([Layer(layer.form, *one) for one in zip(*_split(layer, nets))] for layer in layers))
        return torch.stack([run(rows, list(network)) for rows, network in zip(x.unbind(0), singles)])
    rows = x.reshape(nets, lead.numel(), x.shape[-1])
    for form, weight, bias, gain, shift in layers:
        assert bias is not None
        if bias.ndim == 2:
            rows = torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
        else:
            whole = torch.bmm(rows, weight.mT).view(nets, *lead, -1)
            between = [1] * (len(lead) - bias.ndim + 2)
            rows = (whole + bias.view(nets, *between, *bias.shape[1:])).flatten(1, -2)
        if form.order:
            rows = _finish(form, rows, gain, shift)
    return as_wide(rows.view(nets, *lead, rows.shape[-1]), x)


def _split(layer: Layer, nets: int) -> list[Sequence[Tensor | None]]:
    return [[None] * nets if tensor is None else tensor.unbind(0) for tensor in layer[1:]]


def _finish(form: Form, rows: Tensor, gain: Tensor | None, shift: Tensor | None) -> Tensor:
    """Layer normalisation and activation [K, N, O]."""
    assert gain is not None and shift is not None
    normed = F.layer_norm(rows, rows.shape[-1:], eps=form.eps)
    normed = torch.addcmul(shift.unsqueeze(1), normed, gain.unsqueeze(1))
    return simplex(normed, form.size) if form.order == "norm_simplex" else mish(normed)


class HeadsContext(NamedTuple):
    """Which heads a step is of, with the task's share of their first layers, computed once for many steps.

    Args:
        choice: ``"mean"``: all heads, on states [*, D]. ``"each"``: every head on states of its own, [*, K, B, D],
            where an axis of 1 stands for all. ``"one"``: one head for each state of [*, B, D], with equal work for all.
        dynamics, reward: layers of the heads, see :func:`run_stacked`; for ``"one"`` in the order in which states
            take them.
        order: [*, K], where states [*, B, D] take the heads in an order of their own along the first axes.
    """

    choice: HeadChoice
    dynamics: tuple[Layer, ...]
    reward: tuple[Layer, ...]
    order: Tensor | None = None

    @classmethod
    def of(
        cls,
        choice: HeadChoice,
        dynamics: StackedMLP,
        reward: StackedMLP,
        embedding: Tensor | None,
        latent_dim: int,
        order: Tensor | None = None,
    ) -> HeadsContext:
        """The context of states with this task embedding [*, E], or without one.

        For ``"one"`` state i has the head at the place i modulo K of an ``order`` [K], or [*, K], which by default is
        drawn from torch's generator of their device.
        """
        if choice == "one" and order is None:
            order = dynamics.draw_order()
        own = order if choice == "one" and order is not None and order.ndim > 1 else None
        parts = []
        for network in (dynamics, reward):
            layers = network.layers()
            if choice == "one" and order is not None and own is None:
                layers = [_ordered(layer, order) for layer in layers]
            if embedding is not None:
                layers[0] = _with_embedding(layers[0], choice, embedding, latent_dim, own)
            parts.append(tuple(layers))
        return cls(choice, parts[0], parts[1], own)

    def run(self, layers: Sequence[Layer], latent: Tensor, action: Tensor) -> Tensor:
        """Output of the heads for latents and actions: [*, B, O], or [K, *, O] of all for their mean."""
        if self.choice == "each":
            lead = torch.broadcast_shapes(latent.shape[:-1], action.shape[:-1])
            latent, action = (entry.expand(*lead, -1) for entry in (latent, action))
        joint, nets = torch.cat([latent, action], -1), len(layers[0].weight)
        output = run_stacked(_spread(joint, nets, self.choice, self.order), layers)
        if self.choice == "mean":
            return output
        if self.choice == "each":
            return output.movedim(0, -3)
        if self.order is not None:
            output = _reordered(output, self.order)
        return output.movedim(0, -2).flatten(-3, -2)[..., : joint.shape[-2], :]


def _spread(x: Tensor, nets: int, choice: HeadChoice, order: Tensor | None = None) -> Tensor:
    """What each head reads: [K, *, I] of [*, I], as the context's ``choice`` says."""
    if choice == "mean":
        return x.expand(nets, *x.shape)
    if choice == "each":
        return x.expand(*x.shape[:-3], nets, *x.shape[-2:]).movedim(-3, 0)
    missing = -x.shape[-2] % nets
    x = F.pad(x, (0, 0, 0, missing)) if missing else x
    x = x.unflatten(-2, (-1, nets)).movedim(-2, 0)
    return x if order is None else _reordered(x, order.argsort(-1))


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    """[K, *, n, D] with the first axis in an order [*, K] of its own for each entry of the axes before n."""
    places = order.movedim(-1, 0)
    between = [1] * (x.ndim - 2 - places.ndim)
    return x.take_along_dim(places.view(len(x), *between, *places.shape[1:], 1, 1), 0)


def _ordered(layer: Layer, order: Tensor) -> Layer:
    tensors: Any = (None if tensor is None else tensor.index_select(0, order) for tensor in layer[1:])
    return Layer(layer.form, *tensors)


def _with_embedding(
    first: Layer, choice: HeadChoice, embedding: Tensor, latent_dim: int, order: Tensor | None
) -> Layer:
    """The first layer without the columns of the embedding, whose share is in the bias [K, O] or [K, *, O]."""
    weight, bias, size = first.weight, first.bias, embedding.shape[-1]
    assert bias is not None
    latent, shared, action = weight.split([latent_dim, size, weight.shape[-1] - latent_dim - size], -1)
    if embedding.ndim == 1:
        share = bias + shared @ embedding
    else:
        of_states = choice == "one" and embedding.shape[-2] > 1  # else one embedding for all
        read = _spread(embedding, len(weight), "one" if of_states else "mean", order if of_states else None)
        flat = torch.baddbmm(bias.unsqueeze(1), read.reshape(len(weight), -1, size), shared.mT)
        share = flat.view(*read.shape[:-1], -1)
    return first._replace(weight=torch.cat([latent, action], -1), bias=share)
