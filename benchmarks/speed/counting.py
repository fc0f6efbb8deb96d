"""Counts of launches and host reads: how many operations a computation starts, and how often it waits for a number.

On a CPU every operation that torch dispatches and that computes counts as a launch: on a GPU it would be at least one
kernel. Views, allocations and detached aliases do not count. On a GPU the kernels themselves are counted, by torch's
profiler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

_ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_ALIASES = {"detach", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias"}
#: Results whose sizes depend on numbers, or that are numbers of Python's.
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
_READS_IN_PYTHON = {Tensor.tolist, Tensor.numpy, Tensor.__array__}  # of a CPU's tensor without an operation


class Counts(NamedTuple):
    """Operations started, and numbers that Python waited for."""

    launches: int
    host_reads: int


class Counting(TorchDispatchMode):
    """A context that counts what is dispatched within, backward passes included.

    Attributes:
        launches: operations that compute, by name.
        host_reads: operations that Python waits for, by name.

    Examples:
        >>> import torch
        >>> with Counting() as counting:
        ...     bool((torch.ones(3) + 1).sum() > 2)
        True
        >>> counting.counts
        Counts(launches=4, host_reads=1)
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.host_reads: Counter[str] = Counter()
        self._python = _Reads(self.host_reads)

    @property
    def counts(self) -> Counts:
        return Counts(self.launches.total(), self.host_reads.total())

    def __enter__(self) -> Counting:
        self._python.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._python.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if name in _READS or _reads_mask(name, args) or _comes_to_host(name, args, result):
            self.host_reads[name] += 1
        if name != "_local_scalar_dense" and name not in _ALLOCATES and name not in _ALIASES and not func.is_view:
            self.launches[name] += 1
        return result


class _Reads(TorchFunctionMode):
    def __init__(self, host_reads: Counter[str]) -> None:
        super().__init__()
        self.host_reads = host_reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS_IN_PYTHON:
            self.host_reads[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def count(function: Callable[[], object], device: torch.device | str = "cpu") -> Counts:
    """Launches and host reads of one call."""
    device = torch.device(device)
    if device.type == "cpu":
        with Counting() as counting:
            function()
        return counting.counts
    with Counting() as counting, profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize(device)
    events = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return Counts(len(events), counting.counts.host_reads)


def _reads_mask(name: str, args: Any) -> bool:
    """Whether entries are chosen by a mask, whose sum is read first."""
    if name not in ("index", "index_put", "index_put_"):
        return False
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _comes_to_host(name: str, args: Any, result: Any) -> bool:
    source = args[1] if name == "copy_" else args[0] if args else None
    moved = isinstance(source, Tensor) and isinstance(result, Tensor)
    return name in ("_to_copy", "copy_") and moved and source.device.type != "cpu" and result.device.type == "cpu"
