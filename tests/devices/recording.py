"""A stand-in for CUDA graphs on a CPU: what a program did once is done again on the same tensors, without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.devices.reads import HostReads


class Recording(TorchDispatchMode):
    """Records operations inside ``with``. Like a CUDA graph it holds every tensor and forgets every decision."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again)):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class RecordedModule:
    """Takes the place of tensordict's ``CudaGraphModule``: runs a function, then records it, then replays."""

    made = 0

    def __init__(self, function: Callable[..., Any], warmup: int, device: torch.device) -> None:
        type(self).made += 1
        self.function, self.warmup, self.calls, self.replays = function, warmup, 0, 0

    def __call__(self, *inputs: Any) -> Any:
        self.calls += 1
        if self.calls < self.warmup:
            return self.function(*inputs)
        if self.calls == self.warmup:
            self.inputs = tree_map(_clone, inputs)
            self.recording = Recording()
            with HostReads() as reads, self.recording:
                self.result = self.function(*self.inputs)
            assert reads.found == []
        else:
            self.replays += 1
            for own, given in zip(tree_leaves(self.inputs), tree_leaves(inputs)):
                if own is not None:
                    own.copy_(given)
            self.recording.replay()
        return tree_map(_clone, self.result)


def _clone(value: Any) -> Any:
    return value.clone() if hasattr(value, "clone") else value
