"""One more task for a world model of several, the others untouched."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchrl_pwm.modules.arguments import Rebuildable
from torchrl_pwm.modules.own_encoder import no_statistics


class TaskSizes(Protocol):
    """What is read of a task: :class:`~torchrl_pwm.envs.TaskSpec` has it."""

    @property
    def observation_dim(self) -> int: ...

    @property
    def action_dim(self) -> int: ...


class GrowingTasks(Rebuildable):
    """The part of :class:`~torchrl_pwm.PWMWorldModel` that takes new tasks."""

    num_tasks: int
    task_dim: int
    observation_dim: Any
    observation_shape: tuple[int, ...]
    action_dim: int
    action_masks: Tensor | None
    observation_masks: Tensor | None
    observation_mean: Tensor | None
    observation_std: Tensor | None
    _task_emb: nn.Embedding | None

    @torch.no_grad()
    def add_task(
        self,
        spec: TaskSizes | None = None,
        *,
        action_dim: int | None = None,
        like: int | None = None,
        observation_mean: Tensor | None = None,
        observation_std: Tensor | None = None,
        min_std: float = 1e-2,
        generator: torch.Generator | None = None,
    ) -> int:
        """Gives a model of several tasks one more, to fine-tune it on, and returns the new task's index.

        The embedding gets a new row; every other number of the model stays as it is, bit for bit. The weights of the
        embedding are a new parameter: build losses, optimisers and wrappers after this call. Source: fine-tuning to
        new tasks in TD-MPC2 (arXiv 2310.16828, section 4.2).

        Args:
            spec (TaskSpec, optional): sizes of the task, checked against the model's.

        Keyword Args:
            action_dim (int, optional): the task's own number of actions, for ``action_masks``. Default: the spec's,
                else the model's.
            like (int, optional): a similar task, whose embedding the new one begins with. Default: small random
                numbers, as a new model has.
            observation_mean, observation_std (Tensor, optional): ``[o]`` with o up to O, of the new task's
                observations; needed by a model that has such statistics, see
                :meth:`~torchrl_pwm.PWMWorldModel.set_observation_statistics`.
            min_std (float): floor of the standard deviation.
            generator (torch.Generator, optional): of the random numbers. Default: torch's own.

        Raises:
            ValueError: if the model has no tasks, the task is larger than the model, ``like`` is none of its tasks, or
                statistics are missing or have another size.

        Examples:
            >>> from torchrl_pwm import PWMWorldModel
            >>> model = PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_tasks=3, task_dim=4)
            >>> model.add_task(like=1), model.num_tasks
            (3, 4)
        """
        if self._task_emb is None:
            raise ValueError(
                "This model has a single task and no embedding to extend: build it with num_tasks and task_dim, or "
                "train it on the new task as it is."
            )
        vectors = len(self.observation_shape) == 1
        size = spec.observation_dim if spec is not None and vectors else 0
        own = action_dim if action_dim is not None else spec.action_dim if spec is not None else self.action_dim
        most = self.observation_dim if vectors else 0
        for name, found, largest in (("observations", size, most), ("actions", own, self.action_dim)):
            if found > largest or (name == "actions" and found < 1):
                raise ValueError(
                    f"The task has {name} of size {found}, this model takes 1 to {largest}: smaller ones are padded, "
                    "larger ones need a model of their own, built with the larger size and trained on the task's data."
                )
        if like is not None and not 0 <= like < self.num_tasks:
            raise ValueError(f"like is one of the model's tasks, 0 to {self.num_tasks - 1}, found {like}.")
        statistics = self._new_statistics(observation_mean, observation_std, min_std)

        old = self._task_emb.weight
        row = torch.empty(1, self.task_dim, dtype=old.dtype, device="cpu" if generator is None else generator.device)
        row = row.uniform_(-0.02, 0.02, generator=generator).to(old.device) if like is None else old[like : like + 1]
        self._task_emb.weight = nn.Parameter(torch.cat([old, row]), requires_grad=old.requires_grad)
        self._task_emb.num_embeddings += 1
        self.num_tasks += 1
        if self.action_masks is not None:
            mask = (torch.arange(self.action_dim, device=old.device) < own).to(self.action_masks)
            self.action_masks = torch.cat([self.action_masks, mask[None]])
        seen = size or (most if observation_mean is None else len(observation_mean))
        if self.observation_masks is not None:
            mask = (torch.arange(self.observation_dim, device=old.device) < seen).to(self.observation_masks)
            self.observation_masks = torch.cat([self.observation_masks, mask[None]])
        if statistics is not None:
            self.observation_mean, self.observation_std = statistics
        arguments, sizes = self.constructor_arguments, {"action_dims": own, "observation_dims": seen}
        grown = {name: arguments.get(name) and [*arguments[name], size] for name, size in sizes.items()}
        self._change_arguments(num_tasks=self.num_tasks, **grown)
        return self.num_tasks - 1

    def _new_statistics(self, mean: Tensor | None, std: Tensor | None, min_std: float) -> tuple[Tensor, Tensor] | None:
        """The statistics of all tasks with those of the new one, or None of a model without."""
        if (mean is None) != (std is None):
            raise ValueError("observation_mean and observation_std go together: give both, or neither.")
        if mean is None or std is None:
            if self.observation_mean is None:
                return None
            raise ValueError(
                "This model standardises the observations of each task: give observation_mean and observation_std, of "
                "the new task's data, e.g. observation.mean(0) and observation.std(0)."
            )
        if len(self.observation_shape) != 1:
            raise ValueError(no_statistics(self.observation_shape))
        if mean.ndim != 1 or mean.shape != std.shape or len(mean) > self.observation_dim:
            raise ValueError(
                f"observation_mean and observation_std need the shape [o] with o up to {self.observation_dim}, found "
                f"{list(mean.shape)} and {list(std.shape)}."
            )
        like = next(self.parameters())
        zeros = torch.zeros(self.num_tasks, self.observation_dim, dtype=like.dtype, device=like.device)
        means = zeros if self.observation_mean is None else self.observation_mean
        stds = zeros + 1 if self.observation_std is None else self.observation_std
        new = zeros[:1].clone(), zeros[:1] + 1
        new[0][0, : len(mean)], new[1][0, : len(std)] = mean.to(like), std.to(like).clamp_min(min_std)
        return torch.cat([means, new[0]]), torch.cat([stds, new[1]])
