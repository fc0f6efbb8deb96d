"""Mish, the softmax of SimNorm and products of matrices on a CPU, in half the time of torch's functions or less.

Torch's Mish takes three transcendental functions, and three more on the way back. Here there is one: with
s = 1 / (1 + e^-x) and q = 1 - s,

    mish(x) = x T,    mish'(x) = T + x s q^2 (1 + T)^2,    T = tanh(ln(1 + e^x)) = (s + s q) / (2 - (s + s q)),

where no term overflows and none cancels, so that both are exact to within rounding. Torch's softmax is slow in groups
of 8, which are shorter than a vector register. Products of float32 matrices go through oneDNN, which took half the time
of torch's own choice, MKL, on an AMD EPYC with AVX-512 in one thread.

All of it gives way to torch's functions for few numbers, on other devices and dtypes, while code is compiled, exported
or transformed (``torch.func``), under autocast, in forward-mode differentiation, and under
``torch.backends.mkldnn.flags(enabled=False)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["mish", "product", "simplex", "suits"]

_WIDE, _WORK = 16, 1 << 20  # smallest size, and number of multiplications, of a product that oneDNN is worth
_CHUNK = 1 << 15  # numbers that an elementwise pass of one thread takes at a time, so that they stay in its cache
_SMALLEST = 1 << 12  # numbers below which torch's functions are as fast: they start fewer operations
_PLAIN = (Tensor, torch.nn.Parameter)


def suits(x: Tensor, smallest: int = 1, times: float = 1) -> bool:
    """Whether the kernels of this module serve for ``x`` with so many numbers, here and now."""
    if torch.compiler.is_compiling() or type(x) not in _PLAIN or x.device.type != "cpu" or x.numel() * times < smallest:
        return False
    if x.dtype not in (torch.float32, torch.float64) or not torch.backends.mkldnn.enabled:
        return False
    transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)()
    forward_mode = getattr(forward_ad, "_current_level", 0) >= 0
    return not (transformed or forward_mode or torch.is_autocast_enabled("cpu"))


def mish(x: Tensor) -> Tensor:
    """:func:`torch.nn.functional.mish`."""
    if not suits(x, _SMALLEST):
        return F.mish(x)
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Mish.apply(x)
        return result
    return _in_chunks(x, slope=False)[0]


def simplex(x: Tensor, size: int) -> Tensor:
    """A softmax in each group of ``size`` neighbours of the last axis."""
    if not suits(x, _SMALLEST):
        return _simplex_by_torch(x, size)
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Simplex.apply(x, size)
        return result
    return softmax_into(x.contiguous(), size)


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left`` [M, K] times the transpose of ``right`` [N, K], and a bias [N]; without derivatives."""
    rows, inner, columns = *left.shape, right.shape[0]
    if rows * inner * columns >= _WORK and min(rows, inner, columns) >= _WIDE and left.dtype is torch.float32:
        onednn = _onednn()
        if onednn is not None:
            # Of a second matrix with gaps, such as one step of many sequences, oneDNN makes a product without vectors.
            dense = right.is_contiguous() or right.T.is_contiguous()
            return onednn(left, right if dense else right.contiguous(), bias)
    return F.linear(left, right, bias)


def mish_into(
    x: Tensor, result: Tensor | None = None, slopes: Tensor | None = None, slope: bool = True
) -> tuple[Tensor, Tensor]:
    """Mish and, if ``slope``, its derivative, else Mish twice; into tensors that are given. One may be ``x`` itself."""
    one, two = _numbers(x.dtype)
    s = torch.sigmoid(x)
    q = torch.sub(one, s)
    tanh = torch.addcmul(s, s, q)
    tanh.div_(torch.sub(two, tanh))
    if not slope:
        result = torch.mul(x, tanh, out=result)
        return result, result
    q.addcmul_(q, tanh).square_()
    s.mul_(x)
    result = torch.mul(x, tanh, out=result)
    return result, torch.addcmul(tanh, s, q, out=slopes)


def softmax_into(x: Tensor, size: int, result: Tensor | None = None) -> Tensor:
    """:func:`simplex` of a contiguous tensor, without derivatives, into a contiguous one that is given."""
    groups = x.view(-1, size)
    powers = (groups - groups.amax(-1, keepdim=True)).exp_()
    into = None if result is None else result.view(-1, size)
    return torch.div(powers, powers.sum(-1, keepdim=True), out=into).view(x.shape)


def grouped_softmax_backward(grad: Tensor, result: Tensor, size: int) -> Tensor:
    """The gradient of :func:`simplex`'s input."""
    along = (grad * result).view(-1, size).sum(-1, keepdim=True)
    return (grad.reshape(-1, size) - along).view(result.shape).mul_(result)


def chunks(length: int, unit: int = 1) -> list[slice]:
    """Cuts ``length`` rows of ``unit`` numbers into slices that stay in the processor's cache."""
    return _chunks(length, max(_CHUNK * torch.get_num_threads() // unit, 1))


@functools.lru_cache(maxsize=256)
def _chunks(length: int, step: int) -> list[slice]:
    # A last slice of a few rows is worth no pass of its own.
    count = max(round(length / step), 1)
    edges = [length * index // count for index in range(count + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def derivatives(
    function: Callable[..., Any], inputs: Sequence[Tensor | None], needed: Sequence[bool], grad: Any
) -> Iterator[Tensor | None]:
    """Gradients of ``function(*inputs)`` that can be differentiated again, for those inputs that need one.

    Each input is seen through a view of its own, so that none receives what flows through another.
    """
    with torch.enable_grad():
        views = [None if value is None else value.view_as(value) for value in inputs]
        wanted = [view for view, need in zip(views, needed) if view is not None and need]
        found = iter(torch.autograd.grad(function(*views), wanted, grad, create_graph=True, allow_unused=True))
    return (next(found) if view is not None and need else None for view, need in zip(views, needed))


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result, slope = _in_chunks(x, slope=True)
        ctx.save_for_backward(x, slope)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            return next(derivatives(F.mish, [x], [True], grad))
        return grad * slope


class _Simplex(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        result = softmax_into(x.contiguous(), size)
        ctx.size = size
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        x, result = ctx.saved_tensors
        if torch.is_grad_enabled():
            return next(derivatives(lambda x: _simplex_by_torch(x, ctx.size), [x], [True], grad)), None
        return grouped_softmax_backward(grad, result, ctx.size), None


def _simplex_by_torch(x: Tensor, size: int) -> Tensor:
    return x.unflatten(-1, (-1, size)).softmax(-1).flatten(-2)


def _in_chunks(x: Tensor, *, slope: bool) -> tuple[Tensor, Tensor]:
    """Mish and, if ``slope``, its derivative."""
    x = x.contiguous()
    parts = chunks(x.numel())
    if len(parts) == 1:
        return mish_into(x, slope=slope)
    result = torch.empty_like(x)
    slopes = torch.empty_like(x) if slope else result
    flat, into, slopes_into = x.view(-1), result.view(-1), slopes.view(-1)
    for part in parts:
        mish_into(flat[part], into[part], slopes_into[part], slope)
    return result, slopes


@functools.cache
def _numbers(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """1 and 2; a number of Python's would be made a tensor at each use."""
    with torch.inference_mode(False):
        return torch.ones((), dtype=dtype, device="cpu"), torch.full((), 2.0, dtype=dtype, device="cpu")


@functools.cache
def _onednn() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """oneDNN's product of dense tensors, if this build of torch has it and it is right."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        operator = torch.ops.mkldnn._linear_pointwise.default  # what torch.compile uses
        left, right, bias = (torch.ones(shape, device="cpu", dtype=torch.float32) for shape in ((16, 4), (8, 4), (8,)))
        if not bool((operator(left, right, bias, "none", [], "") == 5).all()):
            return None
    except (AttributeError, RuntimeError, TypeError):
        return None
    return lambda left, right, bias: operator(left, right, bias, "none", [], "")
