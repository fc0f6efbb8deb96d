"""An MLP as one autograd function on a CPU: linear maps, each followed by layer normalisation and an activation.

In torch every operation leaves a node in the graph, which costs a small network more than its numbers. Here a whole MLP
is one node, and Mish, SimNorm and products take the kernels of :mod:`.kernels`. Where those give way to torch's
functions, for small batches, and where a network is made of other layers or a layer carries hooks, so does this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrl_pwm.modules.kernels import (
    chunks,
    derivatives,
    grouped_softmax_backward,
    mish_into,
    product,
    softmax_into,
    suits,
)

__all__ = ["Form", "Layer", "as_wide", "run", "run_each"]

# Numbers in the widest layer below which torch's functions are as fast: they start fewer operations.
_SMALLEST, _SMALLEST_IN_GRAPH = 1 << 11, 1 << 13


class Form(NamedTuple):
    """What follows a linear map.

    Args:
        order: ``"norm_mish"`` (world model), ``"mish_norm"`` (actor, critics), ``"norm_simplex"`` (latents) or nothing.
        eps: of the layer normalisation.
        size: of the groups of ``"norm_simplex"``.
    """

    order: Literal["norm_mish", "mish_norm", "norm_simplex", ""] = ""
    eps: float = 1e-5
    size: int = 0


class Layer(NamedTuple):
    """A linear map and what follows it.

    Args:
        form: what follows.
        weight: [O, I].
        bias: [O], or [*, O] that broadcasts to the batch.
        gain, shift: [O], of the layer normalisation, if it has them.
    """

    form: Form
    weight: Tensor
    bias: Tensor | None
    gain: Tensor | None = None
    shift: Tensor | None = None


def run(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """``[*, I]`` to ``[*, O]``."""
    forms = tuple(layer.form for layer in layers)
    tensors = [tensor for layer in layers for tensor in layer[1:]]
    graph = needs_graph(x, *tensors)
    if not serves(x, layers, graph):
        return as_wide(by_torch(forms, x, *tensors), x)
    if not graph:
        return evaluate(forms, x, tensors, None)
    result: Tensor = _Stack.apply(x, forms, *tensors)
    return result


def run_each(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """``[*, I]`` to ``[N, *, O]``: N networks, whose tensors are stacked along a first axis."""
    forms = tuple(layer.form for layer in layers)
    tensors = [tensor for layer in layers for tensor in layer[1:]]
    first = layers[0].weight
    fits = x.shape[-1] == first.shape[-1] and x.dtype == first.dtype and x.device == first.device
    if fits and needs_graph(x, *tensors) and suits(x, _SMALLEST_IN_GRAPH, _widest(layers)):
        result: Tensor = _Stacks.apply(x, forms, *tensors)
        return result
    return _each(forms, x, *tensors)


def _each(forms: Sequence[Form], x: Tensor, *tensors: Tensor | None) -> Tensor:
    networks: Any = ([*zip(forms, _fours(network))] for network in _networks(tensors))
    return torch.stack([run(x, [Layer(form, *four) for form, four in network]) for network in networks])


def needs_graph(*tensors: Tensor | None) -> bool:
    """Whether something will ask for a gradient of these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def as_wide(result: Tensor, x: Tensor) -> Tensor:
    """A network's result in the dtype of its input: autocast narrows what is multiplied inside, and nothing else."""
    return result if result.dtype is x.dtype else result.to(x.dtype)


def _widest(layers: Sequence[Layer]) -> float:
    """Numbers of the widest layer for each of the input."""
    return max(layer.weight.shape[-2] for layer in layers) / max(layers[0].weight.shape[-1], 1)


def serves(x: Tensor, layers: Sequence[Layer], graph: bool, further: int = 0) -> bool:
    """Whether the kernels serve for an input: ``x``, and ``further`` entries after it."""
    return suits(x, _SMALLEST_IN_GRAPH if graph else _SMALLEST, _widest(layers)) and _fits(x, layers, further)


def _fits(x: Tensor, layers: Sequence[Layer], further: int) -> bool:
    """Whether dtypes and sizes are those of a product; if not, torch's functions say what is wrong."""
    size, lead = torch.Size([x.shape[-1] + further]), x.shape[:-1]
    for layer in layers:
        weight, bias = layer.weight, layer.bias
        if weight.dtype != x.dtype or weight.device != x.device or weight.shape[1:] != size:
            return False
        size = weight.shape[:1]
        rows = lead if bias is None or bias.ndim == 1 else bias.shape[:-1]
        if rows != lead and torch.broadcast_shapes(rows, lead) != lead:
            return False
    return True


def by_torch(forms: Sequence[Form], x: Tensor, *tensors: Tensor | None) -> Tensor:
    """:func:`run` by torch's functions."""
    for form, (weight, bias, gain, shift) in zip(forms, _fours(tensors)):
        assert weight is not None
        of_map, of_rows = (bias, None) if bias is None or bias.ndim == 1 else (None, bias)
        x = F.linear(x, weight, of_map)
        x = x if of_rows is None else x + of_rows
        if not form.order:
            continue
        if form.order == "mish_norm":
            x = F.mish(x)
        x = F.layer_norm(x, x.shape[-1:], gain, shift, form.eps)
        if form.order == "norm_mish":
            x = F.mish(x)
        elif form.order == "norm_simplex":
            x = x.unflatten(-1, (-1, form.size)).softmax(-1).flatten(-2)
    return x


def _fours(tensors: Sequence[Tensor | None]) -> Iterable[Sequence[Tensor | None]]:
    return (tensors[index : index + 4] for index in range(0, len(tensors), 4))


def _networks(tensors: Sequence[Tensor | None]) -> list[tuple[Tensor | None, ...]]:
    """The tensors of each network, of those that are stacked along a first axis."""
    count = next(len(tensor) for tensor in tensors if tensor is not None)
    return list(zip(*([None] * count if tensor is None else tensor.unbind(0) for tensor in tensors)))


class Kept(NamedTuple):
    """What a layer keeps for its gradient: its input, what the normalisation read, its moments, and the activation."""

    inputs: Tensor
    normed: Tensor | None
    mean: Tensor | None
    rstd: Tensor | None
    acted: Tensor | None  # the derivative of Mish, or the simplex itself


def evaluate(forms: Sequence[Form], x: Tensor, tensors: Sequence[Tensor | None], kept: list[Kept] | None) -> Tensor:
    """:func:`run` by the kernels, without derivatives; appends what each layer keeps for them."""
    rows, lead = x.reshape(-1, x.shape[-1]), x.shape[:-1]
    for form, (weight, bias, gain, shift) in zip(forms, _fours(tensors)):
        assert weight is not None
        inputs, of_map = rows, None if bias is None or bias.ndim > 1 else bias
        rows = product(rows, weight, of_map)
        if bias is not of_map and bias is not None:
            rows.view(*lead, rows.shape[-1]).add_(bias)
        rows, *inner = _finish(form, rows, gain, shift, kept is not None)
        if kept is not None:
            kept.append(Kept(inputs, *inner))
    return rows.view(*lead, rows.shape[-1])


def _finish(
    form: Form, rows: Tensor, gain: Tensor | None, shift: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Normalisation and activation [M, O], in pieces that stay in the cache; then what :class:`Kept` keeps."""
    if not form.order:
        return rows, None, None, None, None
    # Torch normalises faster with a gain and a shift than without.
    gain = rows.new_ones(rows.shape[1]) if gain is None else gain
    shift = rows.new_zeros(rows.shape[1]) if shift is None else shift
    parts = chunks(*rows.shape)
    if form.order == "mish_norm" and not keep:
        for part in parts:
            mish_into(rows[part], rows[part], slope=False)
        return torch.native_layer_norm(rows, rows.shape[1:], gain, shift, form.eps)[0], None, None, None, None
    if len(parts) == 1:
        whole = _finish_part(form, rows, gain, shift, keep, None, None)
        return whole if keep else (whole[0], None, None, None, None)
    result, simplex = torch.empty_like(rows), form.order == "norm_simplex"
    slope = torch.empty_like(rows) if keep and not simplex else None
    moments = []
    for part in parts:
        of_slope = None if slope is None else slope[part]
        moments.append(_finish_part(form, rows[part], gain, shift, keep, result[part], of_slope)[2:4])
    if not keep:
        return result, None, None, None, None
    mean, rstd = (torch.cat(moment) for moment in zip(*moments))
    return result, rows, mean, rstd, result if simplex else slope


def _finish_part(
    form: Form, rows: Tensor, gain: Tensor, shift: Tensor, keep: bool, result: Tensor | None, slope: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`_finish` of a piece, into the tensors that are given; Mish before the normalisation goes into ``rows``."""
    if form.order == "mish_norm":
        _, acted = mish_into(rows, rows, slope, keep)
    normed, mean, rstd = torch.native_layer_norm(rows, rows.shape[1:], gain, shift, form.eps)
    if form.order == "norm_mish":
        normed, acted = mish_into(normed, result, slope, keep)
    elif form.order == "norm_simplex":
        normed = acted = softmax_into(normed, form.size, result)
    elif result is not None:
        result.copy_(normed)
    return normed, rows, mean, rstd, acted


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forms: tuple[Form, ...], *tensors: Tensor | None) -> Tensor:
        kept: list[Kept] = []
        result = evaluate(forms, x, tensors, kept)
        ctx.forms = forms
        ctx.save_for_backward(x, *tensors, *(tensor for layer in kept for tensor in layer))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        forms, needed = ctx.forms, ctx.needs_input_grad
        saved, count = ctx.saved_tensors, 1 + 4 * len(forms)
        (x, *tensors), kept = saved[:count], saved[count:]
        if torch.is_grad_enabled():
            again = derivatives(lambda *inputs: by_torch(forms, *inputs), [x, *tensors], [needed[0], *needed[2:]], grad)
            return next(again), None, *again
        return differentiate(forms, x, tensors, kept_of(kept), needed, grad)


class _Stacks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forms: tuple[Form, ...], *tensors: Tensor | None) -> Tensor:
        kept: list[Kept] = []
        result = torch.stack([evaluate(forms, x, network, kept) for network in _networks(tensors)])
        ctx.forms = forms
        ctx.save_for_backward(x, *tensors, *(tensor for layer in kept for tensor in layer))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        forms, needed = ctx.forms, ctx.needs_input_grad
        saved, count = ctx.saved_tensors, 1 + 4 * len(forms)
        (x, *tensors), kept = saved[:count], kept_of(saved[count:])
        if torch.is_grad_enabled():
            again = derivatives(lambda *inputs: _each(forms, *inputs), [x, *tensors], [needed[0], *needed[2:]], grad)
            return next(again), None, *again
        found = [
            differentiate(forms, x, network, kept[index * len(forms) :], needed, grad[index])
            for index, network in enumerate(_networks(tensors))
        ]
        of_x, _, *rest = zip(*found)
        stacked = (None if of[0] is None else torch.stack(of) for of in rest)
        return sum(of_x[1:], of_x[0]) if needed[0] else None, None, *stacked


def kept_of(kept: Sequence[Any]) -> list[Kept]:
    """What layers keep, from all of it one after the other."""
    return [Kept(*kept[index : index + 5]) for index in range(0, len(kept), 5)]


def differentiate(
    forms: Sequence[Form],
    x: Tensor,
    tensors: Sequence[Tensor | None],
    kept: Sequence[Kept],
    needed: Sequence[Any],
    grad: Tensor,
) -> tuple[Any, ...]:
    """Gradients of what :func:`evaluate` read, where ``needed``: of the input, none for the forms, of the tensors."""
    lead, of_x = x.shape[:-1], None
    found: list[Tensor | None] = [None] * len(tensors)
    grad = grad.reshape(-1, grad.shape[-1])
    for index in range(len(forms) - 1, -1, -1):
        weight, bias, gain, shift = tensors[4 * index : 4 * index + 4]
        for_weight, for_bias, for_gain, for_shift = needed[2 + 4 * index : 6 + 4 * index]
        assert weight is not None
        layer = kept[index]
        grad, of_gain, of_shift = _unfinish(forms[index], grad, layer, gain, shift, for_gain, for_shift)
        of_weight = product(grad.T, layer.inputs.T) if for_weight else None
        of_bias = None
        if for_bias and bias is not None:
            of_bias = grad.sum(0) if bias.ndim == 1 else grad.view(*lead, -1).sum_to_size(bias.shape)
        found[4 * index : 4 * index + 4] = of_weight, of_bias, of_gain, of_shift
        if not (needed[0] or any(needed[2 : 2 + 4 * index])):
            break
        grad = product(grad, weight.T)
    else:
        of_x = grad.view(x.shape)
    return of_x, None, *found


def _unfinish(
    form: Form, grad: Tensor, kept: Kept, gain: Tensor | None, shift: Tensor | None, for_gain: bool, for_shift: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of a linear map's result, and of the gain and shift after it."""
    if not form.order:
        return grad, None, None
    normed, mean, rstd, acted = kept[1:]
    assert acted is not None
    if form.order == "norm_mish":
        grad = grad * acted
    elif form.order == "norm_simplex":
        grad = grouped_softmax_backward(grad, acted, form.size)
    backward: Any = torch.ops.aten.native_layer_norm_backward
    size, wanted = grad.shape[1:], [True, for_gain, for_shift]
    grad, of_gain, of_shift = backward(grad, normed, size, mean, rstd, gain, shift, wanted)
    return (grad.mul_(acted) if form.order == "mish_norm" else grad), of_gain, of_shift
