"""Shared parts of the losses on real sequences [B, T]: the unrolled model, and weights and masks of the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_pwm._utils.entries import require
from torchrl_pwm.modules.heads import HeadChoice
from torchrl_pwm.modules.world_model import PWMWorldModel
from torchrl_pwm.objectives.entries import require_batch, require_column
from torchrl_pwm.objectives.first_batch import (
    FirstBatch,
    as_model,
    joined,
    not_representable,
    out_of_range,
    outside_unit,
    own_actions,
    several_tasks,
    states,
    task_entry,
)


class SequenceEntries(NamedTuple):
    """Entries of sequences [B, T] that a loss reads."""

    observation: Tensor
    action: Tensor
    next_observation: Tensor
    reward: Tensor  # [B, T, 1]
    task: Tensor | None  # [B, T]


class SequenceLoss(LossModule):
    """A loss on sequences of real transitions, batch [B, T].

    Args:
        reduction (str): ``"mean"``, ``"sum"`` or ``"none"`` (``[B, T]``).

    Raises:
        ValueError: for another reduction.
    """

    @dataclass
    class _AcceptedKeys:
        """Entries that can be renamed with :meth:`set_keys`; reward, done and terminated live under ``"next"``."""

        observation: NestedKey = "observation"
        action: NestedKey = "action"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        task: NestedKey = "task"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(self, reduction: str) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction must be "mean", "sum" or "none", found {reduction!r}.')
        self.reduction = reduction
        self.first_batch = FirstBatch()

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        self._set_in_keys()

    def _mask(self, tensordict: TensorDictBase) -> Tensor | None:
        """[B, T]: which steps count; ``None`` if all do."""
        mask = same_episode(tensordict, self.tensor_keys.done)
        for key in self._loss_mask_keys():
            given = tensordict.get(key, None)
            if given is not None:
                given = given.reshape(tensordict.shape)
                mask = given if mask is None else mask & given
        return mask

    def counted(self, tensordict: TensorDictBase) -> Tensor | None:
        """How many steps of sequences ``[B, T]`` a mean is over; ``None`` if that is all."""
        mask = self._mask(tensordict)
        return None if mask is None else mask.sum()

    def _entries(self, tensordict: TensorDictBase, model: PWMWorldModel) -> SequenceEntries:
        """What is read of sequences [B, T], in the model's dtypes, its numbers checked at the first batch.

        Raises:
            ValueError: if the batch is not ``[B, T]``, an entry is missing, or of another shape or dtype; at the first
                batch if actions leave [-1, 1], a task is none of the model's, numbers do not fit into float32, or rows
                were joined of several episodes.
        """
        require_sequences(tensordict, self)
        keys, batch = self.tensor_keys, tensordict.batch_size
        next_observation, next_reward = (unravel_key(("next", key)) for key in (keys.observation, keys.reward))
        observation, action = require(tensordict, keys.observation, self), require(tensordict, keys.action, self)
        following, reward = require(tensordict, next_observation, self), require_column(tensordict, next_reward, self)
        states(observation, keys.observation, model, self, batch)
        states(following, next_observation, model, self, batch)
        task = task_entry(tensordict, keys.task, model, self, batch)
        if self.first_batch.due("sequences", observation, action):
            mask = self._mask(tensordict)
            own = own_actions(model, task)
            self.first_batch.check(
                "sequences",
                out_of_range(task, model.num_tasks, keys.task, self),
                outside_unit(action, keys.action, self, own),
                not_representable(observation, keys.observation, self),
                not_representable(action, keys.action, self),
                not_representable(reward, next_reward, self),
                several_tasks(task, keys.task, self, mask),
                joined(observation, following, self, mask),
            )
        return SequenceEntries(observation, as_model(action, model), following, as_model(reward, model), task)

    def _reduced(self, loss: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and self.reduction == "none":
            # With a mask of its own TorchRL's reduction would drop entries; keep [B, T].
            return torch.where(mask, loss, 0.0)
        return self._reduce_loss(loss, mask=mask)

    def _mean(self, value: Tensor, mask: Tensor | None) -> Tensor:
        return self._reduce_loss(value, mask=mask, reduction="mean")


def require_sequences(tensordict: TensorDictBase, owner: object) -> None:
    """Raises ValueError unless the batch is [B, T], with at least one sequence."""
    if tensordict.ndim != 2:
        raise ValueError(
            f"{type(owner).__name__} needs sequences of batch [B, T], found batch {list(tensordict.batch_size)}. "
            "Reshape the sampler's output, e.g. batch.reshape(-1, slice_len)."
        )
    require_batch(tensordict, owner)


def unroll(
    model: PWMWorldModel, observation: Tensor, action: Tensor, task: Tensor | None, *, heads: HeadChoice = "mean"
) -> tuple[Tensor, Tensor]:
    """z_0 = enc(o_0), z_{t+1} = dyn(z_t, a_t): latents [T + 1, B, D], and reward logits [T, B, K] of the steps.

    Args:
        model (PWMWorldModel): the world model.
        observation (Tensor): ``[B, O]``, where the sequences begin.
        action (Tensor): ``[B, T, A]``.
        task (Tensor, optional): ``[B]``; one sequence has one task, whose embedding is looked up once.
        heads (str): of a model with N heads, ``"mean"``: their mean steps; ``"each"``: each has latents of its own,
            [T + 1, N, B, D], and logits [T, N, B, K]; ``"one"``: each sequence has one of them, drawn at random.
    """
    latents = [model.encode_observation(observation, task)]
    if heads == "each" and model.num_heads > 1:
        latents, action = [latents[0].expand(model.num_heads, *latents[0].shape)], action.unsqueeze(0)
    context = model.task_context(task, heads)
    for step in range(action.shape[-2]):
        latents.append(model.next_latent(latents[-1], action[..., step, :], context))
    latent = torch.stack(latents)
    return latent, model.reward_logits(latent[:-1], action.movedim(-2, 0), context)


def termination_error(model: PWMWorldModel, latent: Tensor, terminated: Tensor, task: Tensor | None) -> Tensor:
    """Cross entropy [T, B] of the termination head with what happened.

    Args:
        model (PWMWorldModel): the world model, with a termination head.
        latent (Tensor): ``[T, B, D]``, reached by the steps.
        terminated (Tensor): ``[T, B, 1]``, as numbers.
        task (Tensor, optional): ``[B]``.
    """
    logits = model.termination_logits(latent, task)
    return F.binary_cross_entropy_with_logits(logits, terminated, reduction="none").squeeze(-1)


def same_episode(tensordict: TensorDictBase, done_key: NestedKey) -> Tensor | None:
    """[B, T]: False from the step after a ``("next", done)`` on; ``None`` where the data carry none."""
    done = tensordict.get(unravel_key(("next", done_key)), None)
    if done is None:
        return None
    done = done.squeeze(-1).long()
    return (done.cumsum(1) - done) == 0


def step_weights(rho: float, steps: int, like: Tensor) -> Tensor:
    """rho^t, [steps]."""
    return torch.pow(rho, torch.arange(steps, device=like.device).to(like.dtype))
