"""What many steps of a world model share when they are of the same task."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TaskContext(NamedTuple):
    """The task's share of the first dynamics and reward layers, computed once for many steps.

    ``*_weight`` are the columns that read latent and action; ``*_bias`` [*, units] holds bias and embedding.
    """

    dynamics_weight: Tensor
    dynamics_bias: Tensor
    reward_weight: Tensor
    reward_bias: Tensor
