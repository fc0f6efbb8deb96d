"""Parts of a world model that differ from task to task: padding of actions, and the task's share of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TaskContext(NamedTuple):
    """The task's share of the first dynamics and reward layers, computed once for many steps.

    ``*_weight`` are the columns that read latent and action; ``*_bias`` [*, units] holds bias and embedding.
    """

    dynamics_weight: Tensor
    dynamics_bias: Tensor
    reward_weight: Tensor
    reward_bias: Tensor


def action_masks(action_dims: Sequence[int] | None, num_tasks: int, action_dim: int) -> Tensor | None:
    """[num_tasks, A]: 1 where a task has an action, 0 in its padding."""
    if action_dims is None:
        return None
    if len(action_dims) != max(num_tasks, 1) or not all(0 < size <= action_dim for size in action_dims):
        raise ValueError(
            f"action_dims needs one size between 1 and {action_dim} for each of {max(num_tasks, 1)} task(s), "
            f"found {list(action_dims)}."
        )
    return (torch.arange(action_dim) < torch.tensor(action_dims)[:, None]).float()


def align_task(task: Tensor, batch: torch.Size) -> Tensor:
    """``task`` expanded to ``batch``; its axes are the leading ones, as a TensorDict's batch is.

    Left to broadcasting, ``task`` [B] beside states [B, T] would be read as [T] whenever B equals T.
    """
    if task.ndim > len(batch) or any(size not in (1, whole) for size, whole in zip(task.shape, batch)):
        raise ValueError(
            f"`task` needs one index per state: expected shape {tuple(batch)} or leading axes of it, "
            f"found {tuple(task.shape)}."
        )
    return task.reshape([*task.shape, *[1] * (len(batch) - task.ndim)]).expand(batch)


_INDICES, _SMALL_INDICES = (torch.int64, torch.int32), (torch.uint8, torch.int8, torch.int16)


def known_task(task: Tensor | int, num_tasks: int, batch: torch.Size | None = None) -> Tensor | int:
    """``task`` as an index that tables of tasks can be read with, checked as far as that reads no numbers of a GPU.

    Args:
        task: an index, or indices whose shape broadcasts to ``batch``.
        num_tasks: tasks of the model.
        batch: batch of the states; default: any.

    Raises:
        ValueError: for another dtype or shape, or an index that is not below ``num_tasks``.
    """
    if not isinstance(task, Tensor):
        if isinstance(task, bool) or not isinstance(task, int) or not 0 <= task < num_tasks:
            raise ValueError(f"`task` is an index from 0 to {num_tasks - 1} of this model's tasks, found {task!r}.")
        return task
    if task.dtype in _SMALL_INDICES:
        # As an index of a tensor uint8 would be a mask.
        task = task.long()
    if task.dtype not in _INDICES:
        raise ValueError(f"`task` needs integers (int64), found {task.dtype}: take the index itself, with task.long().")
    if batch is not None and not _broadcasts(task.shape, batch):
        raise ValueError(
            f"`task` needs one index per state: expected the shape {list(batch)}, found {list(task.shape)}"
            f"{'; drop its last axis with task.squeeze(-1)' if task.shape[-1:] == (1,) else ''}."
        )
    return task


def check_tasks(task: Tensor, num_tasks: int) -> None:
    """Raises ValueError unless all indices are from 0 to ``num_tasks`` - 1; reads them."""
    if task.numel():
        low, high = torch.stack(task.aminmax()).tolist()
        if low < 0 or high >= num_tasks:
            raise ValueError(
                f"`task` holds indices from 0 to {num_tasks - 1} of this model's tasks, found {low} to {high}: number "
                "the tasks from 0, or give the model a new one with model.add_task(...)."
            )


def _broadcasts(shape: torch.Size, batch: torch.Size) -> bool:
    missing = len(batch) - len(shape)
    return missing >= 0 and all(size in (1, whole) for size, whole in zip(shape, batch[missing:]))


def embed(table: nn.Embedding, task: Tensor) -> Tensor:
    """Embeddings [*, E] of tasks [*], each shortened to the table's ``max_norm`` where it is longer.

    ``nn.Embedding`` does that itself, in place, but its kernel for GPUs waits for the host, so that it cannot be
    captured in a CUDA graph.
    """
    weight, longest = table.weight, table.max_norm
    if longest is not None:
        with torch.no_grad():
            norm = weight.norm(dim=1, keepdim=True)
            used = torch.zeros_like(norm, dtype=torch.bool).index_fill_(0, task.flatten().long(), True)
            weight.mul_(torch.where(used & (norm > longest), longest / (norm + 1e-7), 1.0))
    return F.embedding(task, weight)
