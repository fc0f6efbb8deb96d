"""Eager, compiled and with CUDA graphs: how a function is wrapped, and why it cannot be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

VARIANTS = ("eager", "compiled", "CUDA graphs")


def obstacle(variant: str, compiles: bool, device: torch.device, backend: str) -> str | None:
    """Why a case has no such variant here, or None."""
    if variant == "eager":
        return None
    if not compiles:
        return "it runs as it is: there is nothing to compile"
    if variant == "CUDA graphs" and device.type != "cuda":
        return f"CUDA graphs need a CUDA device, this run is on {device.type}"
    return compiler_obstacle(backend, device)


@functools.cache
def compiler_obstacle(backend: str, device: torch.device) -> str | None:
    """Why ``torch.compile`` does not work here, from a function of two operations; None if it does."""
    try:
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # every backend has its own errors
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"torch.compile with {backend} does not work here: {lines[0][:160]}"
    return None


def wrapper(variant: str, backend: str) -> Callable[[Any], Any]:
    """What a variant puts around a function."""
    if variant == "eager":
        return lambda function: function
    if variant == "compiled":
        return lambda function: torch.compile(function, backend=backend, dynamic=False)
    return _with_cuda_graphs


def _with_cuda_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled, recorded in CUDA graphs, and its results moved out of the graphs' own memory."""
    compiled = torch.compile(function, mode="reduce-overhead", dynamic=False)

    def run(*args: Any, **kwargs: Any) -> Any:
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, compiled(*args, **kwargs))

    return run


def skipped_graphs() -> int:
    """How many graphs the compiler left without CUDA graphs since :func:`fresh`."""
    return torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


def fresh() -> None:
    """Forgets all compiled functions and counters."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
