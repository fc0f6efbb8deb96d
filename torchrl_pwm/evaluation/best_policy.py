"""The networks that did best in the evaluations of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Outcome = TypeVar("Outcome")


class BestPolicy:
    """The networks that did best in the real env so far; part of the checkpoint.

    In the checkpoint of an earlier version there may be none: then those count that are evaluated from there on.
    """

    optional = True

    def __init__(self, networks: nn.Module) -> None:
        self.networks = networks
        self.result, self.weights = (-math.inf, -math.inf), copy_state(networks)

    def offer(self, score: float, real_return: float, weights: Mapping[str, Tensor] | None = None) -> None:
        """Keeps weights, by default those of now, if their score is above any before, or equal and their return is."""
        if (score, real_return) > self.result:
            self.weights = copy_state(self.networks) if weights is None else self._in_place(weights)
            self.result = (score, real_return)

    def restore(self) -> None:
        """Puts the best weights back into the networks."""
        self.networks.load_state_dict(self.weights)

    def choose(self, select: str, evaluate: Callable[[], Outcome]) -> dict[str, Outcome | None]:
        """Evaluates the networks with their last weights and with the best ones, and leaves those that count in place.

        Args:
            select: ``"last"`` or ``"best"``.
            evaluate: called with the networks in place, once where both are the same.

        Returns:
            What it returned of the ``"last"`` and of the ``"best"``, which is None where none was evaluated before.
        """
        last = copy_state(self.networks)
        outcomes: dict[str, Outcome | None] = {"last": evaluate(), "best": None}
        if self.result[0] > -math.inf:
            same = all(torch.equal(weight, self.weights[name]) for name, weight in last.items())
            self.restore()
            outcomes["best"] = outcomes["last"] if same else evaluate()
            if select == "last":
                self.networks.load_state_dict(last)
        return outcomes

    def state_dict(self) -> dict[str, Any]:
        return {"result": self.result, "weights": self.weights}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.result, self.weights = tuple(state_dict["result"]), self._in_place(state_dict["weights"])

    def _in_place(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Where the networks are: a checkpoint is read on the CPU, a snapshot evaluated there."""
        places = {name: value.device for name, value in self.networks.state_dict().items()}
        return {name: value.to(places.get(name, "cpu")) for name, value in weights.items()}


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict, which later updates leave alone."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
