"""Losses that roll the policy out themselves, by reparameterised actions: the gradient reaches its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.modules import TanhNormal

from torchrl_pwm.objectives.first_batch import FirstBatch
from torchrl_pwm.objectives.first_order import FirstOrderLoss
from torchrl_pwm.objectives.memory import Memory


class ActingLoss(FirstOrderLoss):
    """A :class:`FirstOrderLoss` on rollouts of its own actor, H steps long.

    Args:
        actor_network (TensorDictModule): a TorchRL probabilistic actor.
        value_network (TensorDictModule): see :class:`FirstOrderLoss`.

    Keyword Args:
        horizon (int): steps H of a rollout.
        options: of :class:`FirstOrderLoss`.

    A recurrent actor (TorchRL's ``GRUModule``, ``LSTMModule``) carries its hidden state along the rollout.

    Raises:
        ValueError: if the horizon is below 1, the actor is not probabilistic, a network has lazy layers that have not
            run, the critics are recurrent, or an option is unknown.
    """

    @dataclass
    class _AcceptedKeys(FirstOrderLoss._AcceptedKeys):
        """Entries that can be renamed with :meth:`set_keys`; reward, done and terminated live under ``"next"``."""

        action: NestedKey = "action"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    def __init__(
        self, actor_network: TensorDictModule, value_network: TensorDictModuleBase, *, horizon: int, **options: Any
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, found {horizon}.")
        if not hasattr(actor_network, "get_dist"):
            raise ValueError(
                "actor_network must be a TorchRL probabilistic actor (make_pwm_actor, ProbabilisticActor), found "
                f"{type(actor_network).__name__}, which has no get_dist()."
            )
        super().__init__(actor_network, value_network, **options)
        self.horizon = horizon
        self.first_batch = FirstBatch()
        self.memory = Memory(actor_network)
        self._tanh_gaussian = _is_tanh_gaussian(actor_network)

    def _check_noise(self, noise: Tensor | None) -> None:
        if noise is not None and len(noise) != self.horizon:
            raise ValueError(f"noise must be [H, B, A] with H = {self.horizon}, found shape {tuple(noise.shape)}.")

    def _act(self, state: TensorDictBase, noise: Tensor | None) -> Tensor:
        """An action [B, A] at states [B]; TorchRL's losses run in deterministic mode, which would return the mean.

        Args:
            state (TensorDictBase): what the actor reads; a recurrent one writes its next hidden state into it.
            noise (Tensor, optional): ``[B, A]``, instead of fresh Gaussian noise.

        Raises:
            ValueError: if noise is given for another policy than a tanh-Gaussian, or has another shape.
        """
        if not self._tanh_gaussian:
            if noise is not None:
                raise ValueError("noise needs a tanh-Gaussian actor with actions in [-1, 1].")
            return self.actor_network.get_dist(state).rsample()
        params = self.actor_network.get_dist_params(state)
        return squashed(params.get("loc"), params.get("scale"), noise)


def squashed(loc: Tensor, scale: Tensor, noise: Tensor | None) -> Tensor:
    """tanh(loc + scale * noise), all [B, A], with fresh Gaussian noise if none is given.

    Raises:
        ValueError: for noise of another shape.
    """
    if noise is not None and noise.shape != loc.shape:
        raise ValueError(f"noise must be [H, B, A]: expected {tuple(loc.shape)} a step, found {tuple(noise.shape)}.")
    return torch.tanh(loc + scale * (torch.randn_like(loc) if noise is None else noise))


def _is_tanh_gaussian(actor: TensorDictModule) -> bool:
    """Whether the actor is tanh(loc + scale * noise) with bounds of -1 and 1."""
    heads = [module for module in actor.modules() if isinstance(module, ProbabilisticTensorDictModule)]
    if len(heads) != 1 or heads[0].distribution_class is not TanhNormal or heads[0].in_keys != ["loc", "scale"]:
        return False
    kwargs = dict(heads[0].distribution_kwargs)
    bounds = torch.as_tensor(kwargs.pop("low", -1.0)), torch.as_tensor(kwargs.pop("high", 1.0))
    unit = bool((bounds[0] == -1).all() and (bounds[1] == 1).all())
    return unit and not kwargs.pop("tanh_loc", False) and not set(kwargs) - {"event_dims", "safe_tanh", "upscale"}
