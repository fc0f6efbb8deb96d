"""Moving average of a policy's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class PolicyAverage:
    """Exponential moving average of a network's weights, by :class:`torch.optim.swa_utils.AveragedModel`; part of the
    checkpoint.

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
        # A list of the parameters, since an actor inside a loss may hold them by reference alone.
        self.network = nn.ParameterList(network.parameters())
        self.averaged = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.restart()

    def restart(self) -> None:
        """Begins anew at the network's weights."""
        self.averaged.n_averaged.zero_()
        self.update()

    def update(self) -> None:
        """Takes the network's weights in."""
        self.averaged.update_parameters(self.network)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the average's weights inside, and its own again after."""
        own = [weight.detach().clone() for weight in self.network]
        self.restore()
        try:
            yield
        finally:
            self._set(own)

    def restore(self) -> None:
        """Puts the average into the network."""
        self._set(self.averaged.module.parameters())

    @torch.no_grad()
    def _set(self, weights: Iterable[Tensor]) -> None:
        for parameter, weight in zip(self.network, weights, strict=True):
            parameter.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": list(self.averaged.module.state_dict().values())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        weights = {str(index): weight for index, weight in enumerate(state_dict["weights"])}
        self.averaged.module.load_state_dict(weights)
