"""Eager, compiled, with CUDA graphs and in bfloat16: how updates and functions are run, and why they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from torchrl_pwm._utils.execution import compiler_obstacle

VARIANTS = ("eager", "compiled", "CUDA graphs", "bf16")


@dataclass(frozen=True)
class Variant:
    """One way to run on a device.

    Args:
        name: of :data:`VARIANTS`. On a GPU ``"bf16"`` is compiled and captured too.
        device: where.
        backend: of ``torch.compile``.
    """

    name: str
    device: torch.device
    backend: str = "inductor"

    @property
    def whole(self) -> bool:
        return self.name == "CUDA graphs" or (self.name == "bf16" and self.device.type == "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return torch.bfloat16 if self.name == "bf16" else torch.float32

    @property
    def options(self) -> dict[str, Any]:
        """Of a stepper."""
        return {
            "compile_train_step": self.name == "compiled" or self.whole,
            "cudagraph": self.whole,
            "precision": "bf16" if self.name == "bf16" else "fp32",
        }

    def stepper(self, stepper: Any) -> Any:
        """The stepper, compiled by the backend."""
        stepper.execution.backend = self.backend
        return stepper

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function without an update."""
        if self.name == "bf16":
            function = torch.autocast(self.device.type, torch.bfloat16)(function)
        if self.name == "compiled":
            return torch.compile(function, backend=self.backend, dynamic=False)
        return _with_cuda_graphs(function) if self.whole else function

    def obstacle(self, compiles: bool) -> str | None:
        """Why a case has no such variant here, or None."""
        if self.name == "eager":
            return None
        if not compiles:
            return "it runs as it is: there is nothing to compile"
        if self.name == "CUDA graphs" and self.device.type != "cuda":
            return f"CUDA graphs need a CUDA device, this run is on {self.device.type}"
        return compiler_obstacle(self.device.type, self.backend) if self.options["compile_train_step"] else None


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
