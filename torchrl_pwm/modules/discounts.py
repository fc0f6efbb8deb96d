"""Discounts of a TD-MPC2 model, one for each task, and of a task that is added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrl_pwm.modules.arguments import Rebuildable
from torchrl_pwm.modules.new_task import TaskSizes
from torchrl_pwm.modules.world_model import PWMWorldModel


class TaskDiscounts(Rebuildable):
    """The part of :class:`~torchrl_pwm.TDMPC2Model` that knows how far each of its tasks looks ahead."""

    discount: Tensor
    world_model: PWMWorldModel

    def _set_up_discounts(self, episode_lengths: int | Sequence[int]) -> None:
        self.register_buffer("discount", _discounts(episode_lengths, self.world_model.num_tasks))

    def discount_of(self, task: Tensor | int | None = None) -> Tensor:
        """Discounts [*, 1] of the tasks."""
        if len(self.discount) < self.world_model.num_tasks:
            raise ValueError(
                f"The model has {len(self.discount)} discounts for {self.world_model.num_tasks} tasks: give it a new "
                "task with model.add_task(...), which gives its world model one too."
            )
        return self.discount[task if task is not None and self.world_model.num_tasks else 0].unsqueeze(-1)

    def add_task(self, spec: TaskSizes | None = None, *, episode_length: int | None = None, **options: Any) -> int:
        """Gives the world model one more task, and this model its discount; returns the new task's index.

        All other numbers stay as they are. Build losses, optimisers and wrappers after this call.

        Args:
            spec (TaskSpec, optional): sizes of the task, checked against the model's.

        Keyword Args:
            episode_length (int, optional): steps of an episode. Default: the spec's, else 500.
            **options: see :meth:`PWMWorldModel.add_task <torchrl_pwm.PWMWorldModel.add_task>`.

        Raises:
            ValueError: as of :meth:`PWMWorldModel.add_task <torchrl_pwm.PWMWorldModel.add_task>`, and for a length that
                is not positive.

        Examples:
            >>> from torchrl_pwm import PWMWorldModel, TDMPC2Model
            >>> sizes = {"latent_dim": 16, "units": (32, 32), "num_bins": 11, "num_tasks": 3, "task_dim": 4}
            >>> model = TDMPC2Model(PWMWorldModel(5, 2, **sizes))
            >>> model.add_task(like=1, episode_length=100), model.discount.shape
            (3, torch.Size([4]))
        """
        length = getattr(spec, "episode_length", 500) if episode_length is None else episode_length
        new = _discounts(length, 1).to(self.discount)
        before = self.constructor_arguments["episode_lengths"]
        lengths = [before] * self.world_model.num_tasks if isinstance(before, int) else list(before)
        index = self.world_model.add_task(spec, **options)
        self.discount = torch.cat([self.discount, new])
        self._change_arguments(episode_lengths=[*lengths, length])
        return index


def _discounts(episode_lengths: int | Sequence[int], num_tasks: int) -> Tensor:
    count = max(num_tasks, 1)
    lengths = [episode_lengths] * count if isinstance(episode_lengths, int) else list(episode_lengths)
    if len(lengths) != count or not all(length > 0 for length in lengths):
        raise ValueError(
            f"episode_lengths needs one positive number, or one for each of {count} task(s), found {episode_lengths}."
        )
    return torch.tensor([min(max((length - 5) / length, 0.95), 0.995) for length in lengths])
