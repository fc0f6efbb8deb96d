"""Behaviour cloning, the baseline that any policy extracted from offline data has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Bounded, ReplayBuffer
from torchrl.modules import MLP, Actor
from torchrl.objectives import BCLoss

from torchrl_pwm._utils.finite import all_finite, describe_batch, refuse_bad_update
from torchrl_pwm._utils.seeds import seeded
from torchrl_pwm.modules.layers import Mish
from torchrl_pwm.objectives.first_batch import FirstBatch, outside_unit

__all__ = ["clone_behavior"]

_MIN_STD, _CLIP = 1e-3, 10.0


class Standardize(nn.Module):
    """(observation - mean) / std, clipped: ``[*, O]`` to ``[*, O]``.

    Entries that hardly vary in the data are divided by 1e-3 at least, and nothing is larger than 10: a policy that
    leaves the data meets numbers that it can bear.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp_min(_MIN_STD))

    def forward(self, observation: Tensor) -> Tensor:
        return ((observation.to(self.mean.dtype) - self.mean) / self.std).clamp(-_CLIP, _CLIP)


class _Loss(BCLoss):
    target_actor_network_params: Any  # without it TorchRL warns at each construction


def clone_behavior(
    replay: ReplayBuffer,
    observation_dim: int,
    action_dim: int,
    *,
    updates: int = 2000,
    batch_size: int = 256,
    units: Sequence[int] = (256, 256),
    lr: float = 1e-3,
    statistics_size: int = 10_000,
    seed: int = 0,
    evaluate: Callable[[Actor], object] | None = None,
    eval_interval: int = 400,
) -> Actor:
    """Regresses the data's actions on its standardised observations.

    An MLP with a tanh output is fitted by :class:`torchrl.objectives.BCLoss`, here the squared error, with Adam and a
    learning rate that falls to zero along a cosine. It knows neither rewards nor a model: it is as good as the mean
    action of the data. 2000 updates take about 12 s of one CPU core.

    Args:
        replay: gives ``observation`` [..., at least O] and ``action`` [..., at least A] of one task; entries beyond
            the task's own sizes are left out.
        observation_dim: the task's own observation size O.
        action_dim: the task's own action size A.
        updates: number of gradient steps.
        batch_size: transitions, or sequences, of a step.
        units: hidden layers.
        lr: first learning rate.
        statistics_size: transitions that mean and standard deviation of the observations are taken from.
        seed: seed of the network's first weights; the samples are the replay's. Torch's global generator is left as
            it was found.
        evaluate: called with the actor as it is every ``eval_interval`` updates, and at the end.
        eval_interval: updates between these calls.

    Returns:
        A deterministic TorchRL actor, ``observation`` [*, O] to ``action`` [*, A] in [-1, 1].

    Raises:
        ValueError: if the data are smaller than the task, their actions leave [-1, 1], or a number is out of range.
        FloatingPointError: if an observation, an action, a loss or a gradient is not finite; the entry is named.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> replay = ReplayBuffer(storage=LazyTensorStorage(500))
        >>> observation = torch.randn(500, 3)
        >>> _ = replay.extend(TensorDict({"observation": observation, "action": observation[:, :1].sign()}, [500]))
        >>> actor = clone_behavior(replay, 3, 1, updates=200, units=(32,), lr=1e-2)
        >>> actor(TensorDict({"observation": torch.tensor([[2.0, 0.0, 0.0]])}, [1]))["action"].item() > 0.8
        True
    """
    for name, value in (
        ("updates", updates),
        ("batch_size", batch_size),
        ("statistics_size", statistics_size),
        ("eval_interval", eval_interval),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    pairs, checks = _pairs(replay, statistics_size, observation_dim, action_dim), FirstBatch()
    observation = pairs["observation"]
    if not all_finite(pairs.values()):
        raise FloatingPointError(
            "Update 1 of the behaviour cloning: expected finite data, of which mean and standard deviation are taken, "
            f"found others; {describe_batch(pairs)}. No parameter was changed."
        )
    checks.check("actions", outside_unit(pairs["action"], "action", clone_behavior))
    with seeded(seed):
        network = nn.Sequential(
            Standardize(observation.mean(0), observation.std(0, correction=0)),
            MLP(observation_dim, action_dim, num_cells=list(units), activation_class=Mish),
            nn.Tanh(),
        )
    actor = Actor(network, in_keys=["observation"], out_keys=["action"], spec=Bounded(-1.0, 1.0, (action_dim,)))
    loss = _Loss(actor)
    optimizer = torch.optim.Adam(loss.parameters(), lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for update in range(updates):
        batch = _pairs(replay, batch_size, observation_dim, action_dim)
        error = loss(batch)["loss_bc"]
        optimizer.zero_grad()
        error.backward()
        # Standardize() clips, so that an infinite observation would go unseen in the loss.
        refuse_bad_update("behaviour cloning", update + 1, {"loss_bc": error}, network.parameters(), batch)
        optimizer.step()
        schedule.step()
        if evaluate is not None and ((update + 1) % eval_interval == 0 or update + 1 == updates):
            evaluate(actor)
    return actor.requires_grad_(False)


def _pairs(replay: ReplayBuffer, size: int, observation_dim: int, action_dim: int) -> TensorDictBase:
    """Observations [n, O] and actions [n, A] of a sample."""
    batch = replay.sample(size).select("observation", "action").flatten()
    sizes = (batch["observation"].shape[-1], batch["action"].shape[-1])
    if sizes[0] < observation_dim or sizes[1] < action_dim:
        raise ValueError(
            f"the data have observations and actions of sizes {sizes}, the task of {(observation_dim, action_dim)}: "
            "they are of another task"
        )
    own = {"observation": observation_dim, "action": action_dim}
    return TensorDict({key: batch[key][:, :size].float() for key, size in own.items()}, batch.batch_size)
