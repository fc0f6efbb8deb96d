"""Steps of a world model in its latents: dynamics and reward head, with the task's embedding as a further input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchrl_pwm._utils.devices import is_host, readable
from torchrl_pwm.modules.layers import ResidualLatent, run_from_first_linear
from torchrl_pwm.modules.multitask import TaskContext, check_tasks, known_task
from torchrl_pwm.modules.own_encoder import wrong_size


class LatentSteps(nn.Module):
    """The part of :class:`~torchrl_pwm.PWMWorldModel` that steps from latent to latent and reads rewards there."""

    latent_dim: int
    action_dim: int
    num_tasks: int
    task_dim: int
    _dynamics: nn.Sequential
    _reward: nn.Sequential
    _task_emb: nn.Embedding | None
    _latents: ResidualLatent | None
    _indices_seen: bool  # of a task, on a GPU

    def next_latent(self, latent: Tensor, action: Tensor, task: Tensor | int | TaskContext | None = None) -> Tensor:
        """z' = dyn(z, e, a): ``[*, D]`` and ``[*, A]`` to ``[*, D]``."""
        action = self._read("action", action, (self.action_dim,))
        if isinstance(task, TaskContext):
            joint = torch.cat([latent, action], -1)
            output = run_from_first_linear(self._dynamics, joint, task.dynamics_weight, task.dynamics_bias)
        else:
            output = self._dynamics(self.join(latent, task, action))
        return output if self._latents is None else self._latents.step(latent, output)

    def reward_logits(self, latent: Tensor, action: Tensor, task: Tensor | int | TaskContext | None = None) -> Tensor:
        """Reward logits ``[*, K]``, or with a scalar head the reward itself ``[*, 1]``, which may be normalised."""
        action = self._read("action", action, (self.action_dim,))
        if isinstance(task, TaskContext):
            joint = torch.cat([latent, action], -1)
            return run_from_first_linear(self._reward, joint, task.reward_weight, task.reward_bias)
        return self._reward(self.join(latent, task, action))

    def task_context(self, task: Tensor | int | None) -> TaskContext | Tensor | int | None:
        """The share of ``task`` [*] in a step, to pass in place of ``task`` to many steps. ``None`` without tasks.

        A subclass that overrides a step gets ``task`` itself back, which is what its step expects.
        """
        if self._task_emb is None:
            return None
        steps = ("next_latent", "reward_logits")
        if any(getattr(type(self), step) is not getattr(LatentSteps, step) for step in steps):
            return task
        embedding = self._embed(task)

        def split(layer: nn.Module) -> tuple[Tensor, Tensor]:
            assert isinstance(layer, nn.Linear)
            latent, shared, action = layer.weight.split([self.latent_dim, self.task_dim, self.action_dim], 1)
            return torch.cat([latent, action], 1), nn.functional.linear(embedding, shared, layer.bias)

        return TaskContext(*split(self._dynamics[0]), *split(self._reward[0]))

    def join(self, first: Tensor, task: Tensor | int | None, action: Tensor | None = None) -> Tensor:
        """Input of the encoder (observation first) or a head (latent first, with action), [*, first + E + action]."""
        parts = [first]
        if self._task_emb is not None:
            parts.append(self._embed(task, first.shape[:-1], first.device).expand(*first.shape[:-1], -1))
        if action is not None:
            parts.append(action)
        return torch.cat(parts, -1) if len(parts) > 1 else first

    def _embed(
        self, task: Tensor | int | None, batch: torch.Size | None = None, device: torch.device | None = None
    ) -> Tensor:
        assert self._task_emb is not None
        if task is None:
            raise ValueError(f"This model has {self.num_tasks} tasks: give `task`, the index of each state's task.")
        task = self._known(task, batch)
        if not isinstance(task, Tensor):
            task = torch.tensor(task, device=device or self._task_emb.weight.device)
        return self._task_emb(task)

    def _known(self, task: Tensor | int, batch: torch.Size | None) -> Tensor | int:
        """The task, if it is one of the model's."""
        task = known_task(task, self.num_tasks, batch)
        if isinstance(task, Tensor) and readable(task) and not (self._indices_seen and not is_host(task.device)):
            # On a GPU an index out of range ends the process, and reading it each time would cost more than the step.
            check_tasks(task, self.num_tasks)
            self._indices_seen = True
        return task

    def _read(self, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        """An input in the model's dtype, if its last axes have this shape."""
        if value.shape[-len(shape) :] != shape:
            raise ValueError(wrong_size(name, value.shape, shape))
        first: Any = self._dynamics[0]
        return value if value.dtype == first.weight.dtype else value.to(first.weight.dtype)
