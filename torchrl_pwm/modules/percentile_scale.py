"""A running range of values, between two percentiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PercentileScale(nn.Module):
    """S <- lerp(S, max(1, P_high - P_low), tau): the running range that TD-MPC2 divides its policy's values by.

    The buffer ``value`` [] starts at 1 and is saved with the module. Source: TD-MPC2 (arXiv 2310.16828), appendix on
    the policy; the range between percentiles is DreamerV3's (arXiv 2301.04104).

    Args:
        low, high (float): percentiles, in percent.
        tau (float): share of a new batch.

    Raises:
        ValueError: if the percentiles are not in order, or ``tau`` is not in (0, 1].

    Examples:
        >>> import torch
        >>> scale = PercentileScale(tau=0.5)
        >>> scale.update(torch.linspace(0, 10, 101))
        >>> scale.value, scale(torch.tensor([10.0]))
        (tensor(5.), tensor([2.]))
    """

    value: Tensor
    _quantiles: Tensor

    def __init__(self, low: float = 5.0, high: float = 95.0, tau: float = 0.01) -> None:
        super().__init__()
        if not 0.0 <= low < high <= 100.0:
            raise ValueError(f"The percentiles must satisfy 0 <= low < high <= 100, found low={low} and high={high}.")
        if not 0.0 < tau <= 1.0:
            raise ValueError(f"tau must be above 0 and at most 1, found {tau}.")
        self.tau = tau
        self.register_buffer("value", torch.ones(()))
        self.register_buffer("_quantiles", torch.tensor([low / 100, high / 100]), persistent=False)

    def percentiles(self, x: Tensor) -> Tensor:
        """The two percentiles [2] of all entries, linear between neighbours."""
        return torch.quantile(x.flatten(), self._quantiles.to(x.dtype))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Moves towards the range of a batch of any shape."""
        low, high = self.percentiles(x.detach())
        self.value.lerp_((high - low).clamp_min(1.0).to(self.value), self.tau)

    def reset_parameters(self) -> None:
        """Starts afresh, at 1."""
        self.value.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """x / S."""
        return x / self.value
