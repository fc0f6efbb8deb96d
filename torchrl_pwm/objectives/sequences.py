"""Shared parts of the losses on real sequences [B, T]: the unrolled model, and weights and masks of the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_pwm.modules.world_model import PWMWorldModel
from torchrl_pwm.objectives.entries import require_batch


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


def unroll(model: PWMWorldModel, observation: Tensor, action: Tensor, task: Tensor | None) -> tuple[Tensor, Tensor]:
    """z_0 = enc(o_0), z_{t+1} = dyn(z_t, a_t): latents [T + 1, B, D], and reward logits [T, B, K] of the steps.

    Args:
        model (PWMWorldModel): the world model.
        observation (Tensor): ``[B, O]``, where the sequences begin.
        action (Tensor): ``[B, T, A]``.
        task (Tensor, optional): ``[B]``; one sequence has one task, whose embedding is looked up once.
    """
    latents = [model.encode_observation(observation, task)]
    context = model.task_context(task)
    for step in range(action.shape[1]):
        latents.append(model.next_latent(latents[-1], action[:, step], context))
    latent = torch.stack(latents)
    return latent, model.reward_logits(latent[:-1], action.transpose(0, 1), context)


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
