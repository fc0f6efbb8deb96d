"""Parts of a world model that differ from task to task: padding of actions, and the task's share of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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
