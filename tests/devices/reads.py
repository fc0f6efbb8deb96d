"""Counting of the reads for which a GPU would be waited for."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.embedding_renorm_.default,  # its kernel for GPUs looks for the rows in use
}


class HostReads(TorchDispatchMode):
    """Operations inside ``with`` whose result the host needs before it goes on: ``item``, ``bool``, boolean indices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))
