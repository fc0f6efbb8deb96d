"""State of a replay buffer without the part of its storage that no step was written to yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, pad
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer

_FILLED = "filled_rows"


def filled_state(replay_buffer: ReplayBuffer) -> dict[str, Any]:
    """``replay_buffer.state_dict()``, of whose storage only the rows that were written are kept.

    A TorchRL storage has its whole size in memory from the first step on, and in its state dict. What is kept is the
    storage's own memory, no copy of it, as of any state dict. Other storages than ``LazyTensorStorage`` are kept whole.

    Args:
        replay_buffer: whose storage has the steps, in rows [time, ...], from its beginning on.
    """
    state: dict[str, Any] = replay_buffer.state_dict()
    storage, saved = replay_buffer.storage, state["_storage"]
    if type(storage) is not LazyTensorStorage or not saved["initialized"] or not isinstance(saved["_storage"], dict):
        return state
    whole = _as_tensordict(saved["_storage"])
    capacity = whole.batch_size[0]
    rows = -(-saved["_len"] // whole.batch_size[: storage.ndim][1:].numel())
    if rows >= capacity:
        return state
    filled = {**saved, "_storage": whole[:rows].apply(_apart).state_dict()}
    return {**state, "_storage": filled, _FILLED: {"rows": rows, "capacity": capacity}}


def whole_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`filled_state` made, or a ``state_dict()``, for ``load_state_dict``: with zeros where nothing was."""
    if _FILLED not in state:
        return dict(state)
    whole = {key: value for key, value in state.items() if key != _FILLED}
    filled = _as_tensordict(state["_storage"]["_storage"])
    missing = state[_FILLED]["capacity"] - state[_FILLED]["rows"]
    padded = pad(filled, [0, missing, *[0, 0] * (filled.ndim - 1)], value=0)
    whole["_storage"] = {**state["_storage"], "_storage": padded.state_dict()}
    return whole


def _apart(rows: Tensor) -> Tensor:
    """The same memory as a storage of its own: as a part of a larger one, all of that would be in the file."""
    if not rows.is_contiguous():
        return rows.clone()
    size, first = rows.element_size(), rows.storage_offset()
    memory = rows.untyped_storage()[first * size : (first + rows.numel()) * size]
    return torch.empty(0, dtype=rows.dtype, device=rows.device).set_(memory, 0, rows.shape, rows.stride())


def _as_tensordict(state: Any) -> TensorDictBase:
    return TensorDict().load_state_dict(state, strict=False)
