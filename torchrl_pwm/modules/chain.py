"""A policy's way through a frozen world model as one autograd function on a CPU: H steps of actor and dynamics.

Where the gradient of the latents that the policy reads is cut, its own needs no order of steps: the way back goes
through the dynamics step by step, and then once through the actor, for all H steps as one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrl_pwm.modules import stacks
from torchrl_pwm.modules.actor_critic import GaussianHead
from torchrl_pwm.modules.kernels import derivatives
from torchrl_pwm.modules.layers import hooked, layers_of
from torchrl_pwm.modules.multitask import TaskContext
from torchrl_pwm.modules.stacks import Form, Layer
from torchrl_pwm.modules.world_model import PWMWorldModel

__all__ = ["chain"]


def chain(
    head: GaussianHead, model: Any, latent: Tensor, context: Any, noise: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """a_k = mask tanh(mu(sg[z_k]) + sigma eps_k), z_{k+1} = dyn(z_k, a_k): latents [H + 1, B, D], actions [H, B, A].

    Args:
        head: the actor's network.
        model: the world model, whose weights need no gradient.
        latent: z_0 [B, D].
        context: the model's :meth:`~torchrl_pwm.PWMWorldModel.task_context`.
        noise: [H, B, A].
        mask: [A] or [B, A], of the actions; None for ones.

    Returns:
        None where the steps must be taken one by one: on other devices, with few numbers, while code is compiled, and
        for networks that :func:`.layers_of` does not know.
    """
    actor, dynamics = _actor_layers(head), _dynamics_layers(model, context)
    if actor is None or dynamics is None or latent.requires_grad:
        return None
    tensors = [tensor for layer in (*actor, *dynamics) for tensor in layer[1:]]
    graph = stacks.needs_graph(*tensors)
    if graph and any(tensor is not None and tensor.requires_grad for tensor in tensors[4 * len(actor) :]):
        return None
    width = actor[-1].weight.shape[0]
    if noise.shape[1:] != (*latent.shape[:-1], width) or noise.dtype != latent.dtype or noise.requires_grad:
        return None
    if not (stacks.serves(latent, actor, graph) and stacks.serves(latent, dynamics, graph, further=width)):
        return None
    scale, forms = head.std(), (tuple(layer.form for layer in actor), tuple(layer.form for layer in dynamics))
    if not graph:
        return _steps(forms, latent, noise, mask, scale, tensors, None, None)[:2]
    visited, taken = _Chain.apply(forms, latent, noise, mask, scale, *tensors)
    return visited, taken


def _actor_layers(head: GaussianHead) -> list[Layer] | None:
    return None if hooked(head) or hooked(head.mu_net) else layers_of(head.mu_net)


def _dynamics_layers(model: Any, context: Any) -> list[Layer] | None:
    """The layers of the dynamics, those of a task with its share in the first."""
    if getattr(model.next_latent, "__func__", None) is not PWMWorldModel.next_latent or hooked(model.dynamics_network):
        return None
    layers = layers_of(model.dynamics_network) if model._latents is None else None
    if layers is None or not isinstance(context, TaskContext):
        return None if model.num_tasks else layers
    first = layers[0]._replace(weight=context.dynamics_weight, bias=context.dynamics_bias)
    return [first, *layers[1:]]


_Forms = tuple[tuple[Form, ...], tuple[Form, ...]]  # of actor and dynamics
_Kepts = list[stacks.Kept] | None


def _steps(
    forms: _Forms,
    latent: Tensor,
    noise: Tensor,
    mask: Tensor | None,
    scale: Tensor,
    tensors: Sequence[Tensor | None],
    of_actor: _Kepts,
    of_dynamics: _Kepts,
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, actions, and actions before the mask."""
    actor, dynamics = tensors[: 4 * len(forms[0])], tensors[4 * len(forms[0]) :]
    visited, acted, taken = [latent], [], []
    for drawn in noise:
        loc = stacks.evaluate(forms[0], latent, actor, of_actor)
        acted.append(torch.tanh(loc + scale * drawn))
        taken.append(acted[-1] if mask is None else acted[-1] * mask)
        latent = stacks.evaluate(forms[1], torch.cat([latent, taken[-1]], -1), dynamics, of_dynamics)
        visited.append(latent)
    return torch.stack(visited), torch.stack(taken), torch.stack(acted)


def _by_torch(
    forms: _Forms, latent: Tensor, noise: Tensor, mask: Tensor | None, scale: Tensor, *tensors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by torch's functions, each with its derivatives."""
    actor, dynamics = tensors[: 4 * len(forms[0])], tensors[4 * len(forms[0]) :]
    visited, taken = [latent], []
    for drawn in noise:
        action = torch.tanh(stacks.by_torch(forms[0], latent.detach(), *actor) + scale * drawn)
        taken.append(action if mask is None else action * mask)
        latent = stacks.by_torch(forms[1], torch.cat([latent, taken[-1]], -1), *dynamics)
        visited.append(latent)
    return torch.stack(visited), torch.stack(taken)


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        forms: _Forms,
        latent: Tensor,
        noise: Tensor,
        mask: Tensor | None,
        scale: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        of_actor: list[stacks.Kept] = []
        of_dynamics: list[stacks.Kept] = []
        visited, taken, acted = _steps(forms, latent, noise, mask, scale, tensors, of_actor, of_dynamics)
        ctx.forms = forms
        kept = [*_joined(of_actor, len(forms[0])), *of_dynamics]
        ctx.save_for_backward(latent, noise, mask, scale, *tensors, acted, *(tensor for of in kept for tensor in of))
        return visited, taken

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        forms, (actor_forms, dynamics_forms) = ctx.forms, ctx.forms
        saved, count = ctx.saved_tensors, 4 + 4 * (len(actor_forms) + len(dynamics_forms))
        inputs, acted, kept = saved[:count], saved[count], stacks.kept_of(saved[count + 1 :])
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad[1:]
            return None, *derivatives(lambda *inputs: _by_torch(forms, *inputs), inputs, needed, grads)
        of_visited, of_taken = grads
        (latent, noise, mask, _), tensors = inputs[:4], inputs[4:]
        actor, dynamics = tensors[: 4 * len(actor_forms)], tensors[4 * len(actor_forms) :]
        of_dynamics, size = kept[len(actor_forms) :], latent.shape[-1]
        only_inputs = (True, None, *[False] * len(dynamics))
        grad, of_actions = of_visited[-1], []
        for step in range(len(noise) - 1, -1, -1):
            of_step = of_dynamics[step * len(dynamics_forms) : (step + 1) * len(dynamics_forms)]
            of_joint = stacks.differentiate(dynamics_forms, of_step[0].inputs, dynamics, of_step, only_inputs, grad)[0]
            of_joint = of_joint.view(*latent.shape[:-1], -1)
            of_actions.append(of_joint[..., size:])
            grad = of_visited[step] + of_joint[..., :size]
        of_action = of_taken + torch.stack(of_actions[::-1])
        of_loc = torch.ops.aten.tanh_backward(of_action if mask is None else of_action * mask, acted)
        of_scale = (of_loc * noise).flatten(0, -2).sum(0)
        needed = (False, None, *ctx.needs_input_grad[5:])
        rows = of_loc.view(-1, of_loc.shape[-1])
        of_layers = stacks.differentiate(actor_forms, kept[0].inputs, actor, kept[: len(actor_forms)], needed, rows)[2:]
        return None, None, None, None, of_scale, *of_layers, *[None] * len(dynamics)


def _joined(kept: Sequence[stacks.Kept], layers: int) -> list[stacks.Kept]:
    """What each layer keeps of all steps, one after the other."""
    joined: list[Any] = []
    for layer in range(layers):
        joined.append([None if parts[0] is None else torch.cat(parts) for parts in zip(*kept[layer::layers])])
    return [stacks.Kept(*fields) for fields in joined]
