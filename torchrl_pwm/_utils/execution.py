"""How an update is run: eagerly, compiled, captured in a CUDA graph, and in which precision."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import CudaGraphModule
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchrl import torchrl_logger

from torchrl_pwm._utils.ranges import COUNT, check_choice, check_range

__all__ = ["Execution", "Precision", "compiler_obstacle", "native_precision"]

Precision = Literal["fp32", "tf32", "bf16", "auto"]
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_WITH_OWN_GRAPHS = ("reduce-overhead", "max-autotune")
_TOTAL = 1 << 27  # multiplications of the products by which a precision is chosen


class Execution:
    """The parts of an update as they are run on a device, after a warm-up.

    A *pure* function, such as a loss, goes from tensors to tensors with a graph and is compiled (:meth:`call`); a
    *program* also steps optimisers and is captured whole (:meth:`program`). Neither reads a number. Options follow
    TorchRL's ``DreamerV3OptimizationStepper``.

    Args:
        device (torch.device): of the networks.

    Keyword Args:
        compile_train_step (bool, optional): compile the pure functions by ``torch.compile``. ``None`` (default) does on
            CUDA and not on a CPU, where this package's own kernels were measured to be faster.
        compile_mode (str): of ``torch.compile``.
        cudagraph (bool, optional): capture the programs in CUDA graphs. ``None`` (default) does on CUDA.
        warmup_steps (int): rehearsals before the first update.
        precision (str): ``"fp32"`` (default); ``"tf32"``, products of float32 numbers with 10 bits of mantissa (CUDA);
            ``"bf16"``, products of bfloat16 numbers, with weights, optimisers, losses and sums in float32; ``"auto"``,
            whichever of float32 and bfloat16 multiplies faster here, see :func:`native_precision`.

    Raises:
        ValueError: if an option is unknown, or the device has no such thing.
    """

    backend = "inductor"  # of ``torch.compile``

    def __init__(
        self,
        device: torch.device,
        *,
        compile_train_step: bool | None = None,
        compile_mode: str = "default",
        cudagraph: bool | None = None,
        warmup_steps: int = 3,
        precision: Precision = "fp32",
    ) -> None:
        check_choice(_MODES, compile_mode=compile_mode)
        check_choice(get_args(Precision), precision=precision)
        check_range(COUNT, warmup_steps=warmup_steps)
        self.options: dict[str, Any] = {
            "compile_train_step": compile_train_step,
            "compile_mode": compile_mode,
            "cudagraph": cudagraph,
            "warmup_steps": warmup_steps,
            "precision": precision,
        }
        cuda = device.type == "cuda"
        if cudagraph and not cuda:
            raise ValueError(f"cudagraph=True needs networks on a CUDA device, found them on {device}: leave it out.")
        if precision == "tf32" and device.type == "cpu":
            raise ValueError('precision="tf32" is of NVIDIA GPUs, found networks on the CPU: take "fp32" or "bf16".')
        if cudagraph and compile_mode in _WITH_OWN_GRAPHS:
            raise ValueError(
                f"compile_mode={compile_mode!r} captures graphs of its own: take cudagraph=False with it, or another "
                f"mode, such as {_MODES[-1]!r}."
            )
        self.device, self.warmup_steps = device, warmup_steps
        self.compile_mode = compile_mode
        self.compiles = cuda if compile_train_step is None else compile_train_step
        self.captures = cuda and compile_mode not in _WITH_OWN_GRAPHS if cudagraph is None else cudagraph
        self.required = bool(compile_train_step), bool(cudagraph)
        self.precision = native_precision(device) if precision == "auto" else precision
        self.ready = not (self.compiles or self.captures)
        self._off = True  # until the warm-up
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._captured: dict[str, _Captured] = {}

    def copy(self) -> Execution:
        """The same way of running, of other functions."""
        return Execution(self.device, **self.options)

    def call(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """A pure function's result, compiled if it is to be, in its precision."""
        if self.compiles and not self._off:
            name = function.__name__
            if name not in self._compiled:
                self._compiled[name] = torch.compile(
                    function, backend=self.backend, mode=self.compile_mode, dynamic=False
                )
            function = self._compiled[name]
        if self.precision != "bf16" or self.device.type == "meta":  # which has no autocast
            return function(*inputs)
        with torch.autocast(self.device.type, torch.bfloat16):
            return function(*inputs)

    def program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A program as it is run, captured if it is to be."""
        if self.captures and not self._off:
            if function.__name__ not in self._captured:
                self._captured[function.__name__] = _Captured(function, self)
            function = self._captured[function.__name__]
        return function if self.precision != "tf32" else functools.partial(_in_tf32, function)

    def warm_up(self, rehearse: Callable[[], object]) -> None:
        """Compiles and captures while ``rehearse`` is called, which must change nothing.

        Where compiling was not asked for by name and is not possible, updates run eagerly, with a warning.
        """
        self._off, self.ready = False, True
        obstacle = compiler_obstacle(self.device.type, self.backend) if self.compiles else None
        if obstacle is not None:
            self._give_up(obstacle)
        if not (self.compiles or self.captures):
            return
        begun = time.perf_counter()
        torchrl_logger.info("Compiling or capturing the update: the first one takes a while.")
        try:
            for _ in range(self.warmup_steps + 1):
                rehearse()
        except Exception as error:
            if any(self.required):
                raise
            self._give_up(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}")
        else:
            torchrl_logger.info(f"The update is ready after {time.perf_counter() - begun:.0f} s.")

    def forget(self) -> None:
        """Drops what was captured, after a state has been loaded into other tensors."""
        self._captured.clear()
        if self.captures:
            self._off, self.ready = True, False

    def _give_up(self, reason: str) -> None:
        warnings.warn(f"Updates run eagerly, uncompiled: {reason}.", stacklevel=2)
        self.compiles = self.captures = False
        self._captured.clear()


class _Captured:
    """A program in a CUDA graph; inputs of another form than the first ones run it eagerly."""

    def __init__(self, function: Callable[..., Any], execution: Execution) -> None:
        self.function, self.form = function, list[Any]()
        self.graph = CudaGraphModule(function, warmup=execution.warmup_steps, device=execution.device)

    def __call__(self, *inputs: Any) -> Any:
        form = _form(inputs)
        self.form = self.form or form
        return (self.graph if form == self.form else self.function)(*inputs)


def _form(inputs: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in tree_leaves(tuple(inputs)):
        if isinstance(value, TensorDictBase):
            found += [(key, leaf.shape, leaf.dtype) for key, leaf in value.items(True, True)]
        else:
            found.append((value.shape, value.dtype) if isinstance(value, Tensor) else value)
    return found


def _in_tf32(function: Callable[..., Any], *inputs: Any) -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return function(*inputs)
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def compiler_obstacle(device: str, backend: str = "inductor") -> str | None:
    """Why ``torch.compile`` does not work here, from a function of two operations; None if it does."""
    try:
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # every backend has its own errors
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"torch.compile with {backend} does not work here ({lines[0][:160]})"
    return None


@functools.cache
def native_precision(device: torch.device, size: int = 512) -> Precision:
    """``"bf16"`` if products of square matrices take less than two thirds of the time in bfloat16, else ``"fp32"``."""
    if device.type == "meta":
        return "fp32"
    seconds = {dtype: _seconds(device, size, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return "bf16" if seconds[torch.bfloat16] < seconds[torch.float32] / 1.5 else "fp32"


def _seconds(device: torch.device, size: int, dtype: torch.dtype) -> float:
    x, best = torch.ones(size, size, dtype=dtype, device=device), float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(max(_TOTAL // size**3, 1)):
            product = x @ x
        float(product[0, 0])  # a GPU is waited for
        best = min(best, time.perf_counter() - begun)
    return best
