"""Reparameterised actions of a policy inside a loss, where the gradient of the return must reach its parameters."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule
from torch import Tensor
from torchrl.modules import TanhNormal


def require_probabilistic(actor: TensorDictModule) -> None:
    """Raises ValueError if the policy is not a probabilistic actor."""
    if not hasattr(actor, "get_dist"):
        raise ValueError(
            "actor_network must be a TorchRL probabilistic actor (make_pwm_actor, ProbabilisticActor), found "
            f"{type(actor).__name__}, which has no get_dist()."
        )


def is_tanh_gaussian(actor: TensorDictModule) -> bool:
    """Whether the actor is tanh(loc + scale * noise) with bounds of -1 and 1."""
    heads = [module for module in actor.modules() if isinstance(module, ProbabilisticTensorDictModule)]
    if len(heads) != 1 or heads[0].distribution_class is not TanhNormal or heads[0].in_keys != ["loc", "scale"]:
        return False
    kwargs = dict(heads[0].distribution_kwargs)
    bounds = torch.as_tensor(kwargs.pop("low", -1.0)), torch.as_tensor(kwargs.pop("high", 1.0))
    unit = bool((bounds[0] == -1).all() and (bounds[1] == 1).all())
    return unit and not kwargs.pop("tanh_loc", False) and not set(kwargs) - {"event_dims", "safe_tanh", "upscale"}


def reparameterized_action(
    actor: TensorDictModule, state: TensorDictBase, noise: Tensor | None, *, tanh_gaussian: bool
) -> Tensor:
    """An action [B, A] at states [B]; TorchRL's losses run in deterministic mode, which would return the mean.

    Args:
        actor (TensorDictModule): the policy.
        state (TensorDictBase): what it reads.
        noise (Tensor, optional): ``[B, A]``, instead of fresh Gaussian noise.

    Keyword Args:
        tanh_gaussian (bool): what :func:`is_tanh_gaussian` says, asked once and not at every step.

    Raises:
        ValueError: if noise is given for another policy, or has another shape.
    """
    if not tanh_gaussian:
        if noise is not None:
            raise ValueError("noise needs a tanh-Gaussian actor with actions in [-1, 1].")
        return actor.get_dist(state).rsample()
    params = actor.get_dist_params(state)
    loc, scale = params.get("loc"), params.get("scale")
    if noise is not None and noise.shape != loc.shape:
        raise ValueError(f"noise must be [H, B, A]: expected {tuple(loc.shape)} a step, found {tuple(noise.shape)}.")
    return torch.tanh(loc + scale * (torch.randn_like(loc) if noise is None else noise))
