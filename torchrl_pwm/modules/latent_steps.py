"""Steps of a world model in its latents: dynamics and reward head, with the task's embedding as a further input."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_pwm._utils.devices import is_host, readable
from torchrl_pwm.modules.heads import HeadChoice, HeadsContext, StackedMLP
from torchrl_pwm.modules.layers import ResidualLatent, run_from_first_linear
from torchrl_pwm.modules.multitask import TaskContext, check_tasks, embed, known_task
from torchrl_pwm.modules.own_encoder import wrong_size
from torchrl_pwm.modules.two_hot import TwoHotCodec


class LatentSteps(nn.Module):
    """The part of :class:`~torchrl_pwm.PWMWorldModel` that steps from latent to latent and reads rewards there."""

    latent_dim: int
    action_dim: int
    num_heads: int
    num_tasks: int
    codec: TwoHotCodec
    task_dim: int
    _dynamics: nn.Sequential
    _reward: nn.Sequential
    _task_emb: nn.Embedding | None
    _latents: ResidualLatent | None
    _indices_seen: bool  # of a task, on a GPU
    action_masks: Tensor | None

    def next_latent(
        self, latent: Tensor, action: Tensor, task: Tensor | int | TaskContext | HeadsContext | None = None
    ) -> Tensor:
        """z' = dyn(z, e, a): ``[*, D]`` and ``[*, A]`` to ``[*, D]``.

        Of several heads it is their mean, unless a context says which: see :meth:`task_context`.
        """
        action = self._read("action", action, (self.action_dim,))
        if self.num_heads > 1:
            return self._next_of_heads(latent, action, self._heads(task))
        assert not isinstance(task, HeadsContext)
        if isinstance(task, TaskContext):
            joint = torch.cat([latent, action], -1)
            output = run_from_first_linear(self._dynamics, joint, task.dynamics_weight, task.dynamics_bias)
        else:
            output = self._dynamics(self.join(latent, task, action))
        return output if self._latents is None else self._latents.step(latent, output)

    def reward_logits(
        self, latent: Tensor, action: Tensor, task: Tensor | int | TaskContext | HeadsContext | None = None
    ) -> Tensor:
        """Reward logits ``[*, K]``, or with a scalar head the reward itself ``[*, 1]``, which may be normalised.

        Of several heads it is the mean of their distributions, or rewards, unless a context says which head.
        """
        action = self._read("action", action, (self.action_dim,))
        if self.num_heads > 1:
            return self._reward_of_heads(latent, action, self._heads(task))
        assert not isinstance(task, HeadsContext)
        if isinstance(task, TaskContext):
            joint = torch.cat([latent, action], -1)
            return run_from_first_linear(self._reward, joint, task.reward_weight, task.reward_bias)
        return self._reward(self.join(latent, task, action))

    def masked(self, action: Tensor, task: Tensor | None = None) -> Tensor:
        """Actions [*, A] with zeros where a task [*] has no entry of its own; as they are without ``action_dims``."""
        if self.action_masks is None:
            return action
        return action * self.action_masks[task if task is not None and self.num_tasks else 0]

    def _heads(self, task: Tensor | int | TaskContext | HeadsContext | None) -> HeadsContext:
        """The context of a step that may have been given none."""
        assert not isinstance(task, TaskContext)
        return task if isinstance(task, HeadsContext) else self._heads_context(task, "mean")

    def draw_heads(self) -> Tensor | None:
        """A random order [K] of several heads, which states take in turn; None of one head."""
        return self._dynamics.draw_order() if isinstance(self._dynamics, StackedMLP) else None

    def _heads_context(
        self, task: Tensor | int | None, choice: HeadChoice, order: Tensor | None = None
    ) -> HeadsContext:
        assert isinstance(self._dynamics, StackedMLP) and isinstance(self._reward, StackedMLP)
        embedding = None if self._task_emb is None else self._embed(task)
        return HeadsContext.of(choice, self._dynamics, self._reward, embedding, self.latent_dim, order)

    def _next_of_heads(self, latent: Tensor, action: Tensor, context: HeadsContext) -> Tensor:
        following = context.run(context.dynamics, latent, action)
        if self._latents is not None:
            following = self._latents.step(latent, following)
        if context.choice != "mean":
            return following
        mean = following.mean(0)  # of points on simplices: one on them, too
        return self._latents(mean) if self._latents is not None and self._latents.simnorm is None else mean

    def _reward_of_heads(self, latent: Tensor, action: Tensor, context: HeadsContext) -> Tensor:
        logits = context.run(context.reward, latent, action)
        if context.choice != "mean":
            return logits
        if logits.shape[-1] == 1:
            return logits.mean(0)
        return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))

    def task_context(
        self, task: Tensor | int | None, heads: HeadChoice = "mean", order: Tensor | None = None
    ) -> TaskContext | HeadsContext | Tensor | int | None:
        """The share of ``task`` [*] in a step, to pass in place of ``task`` to many steps. ``None`` without tasks.

        A subclass that overrides a step gets ``task`` itself back, which is what its step expects.

        Args:
            task: index or indices.
            heads: of a model with several heads, those that the steps are of. ``"mean"``: the mean of all.
                ``"each"``: every head with states of its own, [*, K, B, D]. ``"one"``: a random head for each state of
                [*, B, D], the same in all steps that get this context; the work is that of one head.
            order: for ``"one"``, as :meth:`draw_heads` gives it: state i gets the head at its place i modulo K.
        """
        if self._task_emb is None and self.num_heads == 1:
            return None
        steps = ("next_latent", "reward_logits")
        if any(getattr(type(self), step) is not getattr(LatentSteps, step) for step in steps):
            return task
        if self.num_heads > 1:
            return self._heads_context(task, heads, order)
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
        return embed(self._task_emb, task)

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
        # under autocast a frozen weight is narrower, and so is the bias of several heads, which is a matrix
        dtype = first.bias.dtype if self.num_heads == 1 else self.codec.bins.dtype
        return value if value.dtype == dtype else value.to(dtype)
