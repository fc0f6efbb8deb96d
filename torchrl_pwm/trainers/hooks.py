"""The mean of a policy's latest weights, which is steadier than any of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class PolicyAverage:
    """Exponential moving average of a network's weights; part of the checkpoint.

    First-order updates from small batches jitter about a good policy by enough to lose a swing-up. What is evaluated
    and kept is therefore the average; the updates go on from the weights themselves.
    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992).

    Args:
        network (nn.Module): what is averaged.
        decay (float): share of the average that stays in each :meth:`update`; 0 follows the network.

    Raises:
        ValueError: if the decay is not in [0, 1).

    Examples:
        >>> network = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(network.weight, 1.0)
        >>> average = PolicyAverage(network, decay=0.5)
        >>> _ = nn.init.constant_(network.weight, 0.0)
        >>> average.update()
        >>> with average.applied():
        ...     network.weight.item()
        0.5
        >>> network.weight.item()
        0.0
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"The decay of a policy's average must be at least 0 and below 1, found {decay}.")
        self.params: list[Tensor] = list(network.parameters())
        self.decay = decay
        self.weights: list[Tensor] = []
        self.restart()

    def restart(self) -> None:
        """Begins anew at the network's weights."""
        self.weights = [param.detach().clone() for param in self.params]

    @torch.no_grad()
    def update(self, *_: Any) -> None:
        """Takes the network's weights in."""
        torch._foreach_lerp_(self.weights, self.params, 1 - self.decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the average's weights inside, and its own again after."""
        own = [param.detach().clone() for param in self.params]
        self.restore()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.params, own)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the average into the network."""
        torch._foreach_copy_(self.params, self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.weights = [weight.clone() for weight in state_dict["weights"]]


class BestPolicy:
    """The actor that did best in the real environment so far; part of the checkpoint."""

    def __init__(self, actor: nn.Module) -> None:
        self.actor = actor
        self.result, self.weights = (-math.inf, -math.inf), copy_state(actor)

    def offer(self, score: float, real_return: float) -> None:
        """Keeps the actor as it is now if its score is above any before, or equal and its return is."""
        if (score, real_return) > self.result:
            self.result, self.weights = (score, real_return), copy_state(self.actor)

    def restore(self) -> None:
        """Puts the best weights back into the actor."""
        self.actor.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"result": self.result, "weights": self.weights}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.result, self.weights = tuple(state_dict["result"]), dict(state_dict["weights"])


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
