"""A policy's steps inside a world model, on latents."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_pwm.modules.actor_critic import gaussian_head
from torchrl_pwm.modules.chain import chain
from torchrl_pwm.objectives.acting import ActingLoss, squashed

__all__ = ["state_at", "walk"]


def walk(
    loss: ActingLoss,
    model: Any,
    latent: Tensor,
    task: Tensor | None,
    context: Any,
    noise: Tensor | None,
    mask: Tensor | None,
    held: dict[Any, Tensor],
    *,
    detach: bool,
) -> tuple[Tensor, Tensor]:
    """a_k = mask policy(z_k), z_{k+1} = dyn(z_k, a_k): latents [H + 1, B, D] and actions [H, B, A].

    Args:
        loss: with the policy and the horizon H.
        model: the world model.
        latent: z_0 [B, D].
        task: [B], which the policy may read.
        context: what the model takes in place of the task.
        noise: [H, B, A]; None where the policy draws its own.
        mask: [A] or [B, A]; None for ones.
        held: hidden states of a recurrent policy.
        detach: whether the gradient stops where the policy reads a latent.
    """
    keys: Any = loss.tensor_keys
    head, latents, actions = gaussian_head(loss.actor_network, keys.latent), [latent], []
    if head is not None and noise is not None and detach:
        steps = chain(head, model, latent, context, noise, mask)
        if steps is not None:
            return steps
    for step in range(loss.horizon):
        seen, drawn = latent.detach() if detach else latent, None if noise is None else noise[step]
        if head is None:
            state = loss.memory.recall(state_at(seen, task, keys), held)
            action = loss._act(state, drawn)
            held = loss.memory.keep(state)
        else:
            loc, scale = head(seen)
            action = squashed(loc, scale, drawn)
        actions.append(action if mask is None else action * mask)
        latent = model.next_latent(latent, actions[-1], context)
        latents.append(latent)
    return torch.stack(latents), torch.stack(actions)


def state_at(latent: Tensor, task: Tensor | None, keys: Any) -> TensorDictBase:
    """What the policy reads at latents [B, D]."""
    entries = {keys.latent: latent}
    return TensorDict(entries if task is None else {**entries, keys.task: task}, latent.shape[:-1])
