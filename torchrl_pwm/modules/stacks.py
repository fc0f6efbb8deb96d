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

__all__ = ["Form", "Layer", "run"]

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
    graph = torch.is_grad_enabled() and (x.requires_grad or any(t is not None and t.requires_grad for t in tensors))
    if not (suits(x, _SMALLEST_IN_GRAPH if graph else _SMALLEST, _widest(layers)) and _fits(x, layers)):
        return _by_torch(forms, x, *tensors)
    if not graph:
        return _forward(forms, x, tensors, None)
    result: Tensor = _Stack.apply(x, forms, *tensors)
    return result


def _widest(layers: Sequence[Layer]) -> float:
    """Numbers of the widest layer for each of the input."""
    return max(layer.weight.shape[0] for layer in layers) / max(layers[0].weight.shape[1], 1)


def _fits(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether dtypes and sizes are those of a product; if not, torch's functions say what is wrong."""
    size, lead = x.shape[-1:], x.shape[:-1]
    for layer in layers:
        weight, bias = layer.weight, layer.bias
        if weight.dtype != x.dtype or weight.device != x.device or weight.shape[1:] != size:
            return False
        size = weight.shape[:1]
        rows = lead if bias is None or bias.ndim == 1 else bias.shape[:-1]
        if rows != lead and torch.broadcast_shapes(rows, lead) != lead:
            return False
    return True


def _by_torch(forms: Sequence[Form], x: Tensor, *tensors: Tensor | None) -> Tensor:
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


class _Kept(NamedTuple):
    """What a layer keeps for its gradient: its input, what the normalisation read, its moments, and the activation."""

    inputs: Tensor
    normed: Tensor | None
    mean: Tensor | None
    rstd: Tensor | None
    acted: Tensor | None  # the derivative of Mish, or the simplex itself


def _forward(forms: Sequence[Form], x: Tensor, tensors: Sequence[Tensor | None], kept: list[_Kept] | None) -> Tensor:
    rows, lead = x.reshape(-1, x.shape[-1]), x.shape[:-1]
    for form, (weight, bias, gain, shift) in zip(forms, _fours(tensors)):
        assert weight is not None
        inputs, of_map = rows, None if bias is None or bias.ndim > 1 else bias
        rows = product(rows, weight, of_map)
        if bias is not of_map and bias is not None:
            rows.view(*lead, rows.shape[-1]).add_(bias)
        rows, *inner = _finish(form, rows, gain, shift, kept is not None)
        if kept is not None:
            kept.append(_Kept(inputs, *inner))
    return rows.view(*lead, rows.shape[-1])


def _finish(
    form: Form, rows: Tensor, gain: Tensor | None, shift: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Normalisation and activation [M, O], in pieces that stay in the cache; then what :class:`_Kept` keeps."""
    if not form.order:
        return rows, None, None, None, None
    # Torch normalises faster with a gain and a shift than without.
    gain = rows.new_ones(rows.shape[1]) if gain is None else gain
    shift = rows.new_zeros(rows.shape[1]) if shift is None else shift
    parts = chunks(*rows.shape)
    if form.order == "mish_norm" and not keep:
        for part in parts:
            mish_into(rows[part], rows[part], slope=False)
        return (torch.native_layer_norm(rows, rows.shape[1:], gain, shift, form.eps)[0], *[None] * 4)
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
        kept: list[_Kept] = []
        result = _forward(forms, x, tensors, kept)
        ctx.forms = forms
        ctx.save_for_backward(x, *tensors, *(tensor for layer in kept for tensor in layer))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        forms, needed = ctx.forms, ctx.needs_input_grad
        saved, count = ctx.saved_tensors, 1 + 4 * len(forms)
        (x, *tensors), kept = saved[:count], saved[count:]
        if torch.is_grad_enabled():
            again = derivatives(
                lambda *inputs: _by_torch(forms, *inputs), [x, *tensors], [needed[0], *needed[2:]], grad
            )
            return next(again), None, *again
        layers = [_Kept(*kept[index : index + 5]) for index in range(0, len(kept), 5)]
        return _backward(forms, x, tensors, layers, needed, grad)


def _backward(
    forms: Sequence[Form],
    x: Tensor,
    tensors: Sequence[Tensor | None],
    kept: Sequence[_Kept],
    needed: Sequence[bool],
    grad: Tensor,
) -> tuple[Any, ...]:
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
    form: Form, grad: Tensor, kept: _Kept, gain: Tensor | None, shift: Tensor | None, for_gain: bool, for_shift: bool
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
