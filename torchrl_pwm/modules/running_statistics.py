"""Running statistics of a stream of batches: mean and variance, and the range between two percentiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RunningMoments(nn.Module):
    """Running mean and population variance, merged batch by batch (Chan et al.'s parallel formula).

    Buffers ``mean``, ``var`` [*shape] and ``count`` [], or [*shape] where entries are ``independent``, are saved with
    the module. Source: PWM's published code, which starts at mean 0, variance 1 and a count of 1e-4.

    Args:
        shape (tuple of int): shape of one sample. Default: ``()``.
        epsilon (float): added to the variance under the root. Default: ``1e-5``.
        independent (bool): give each entry of a sample a count of its own, so that one that is not finite leaves the
            others alone. Default: ``False``.

    Examples:
        >>> import torch
        >>> moments = RunningMoments()
        >>> moments.update(torch.tensor([1.0, 3.0]))
        >>> round(moments.mean.item(), 3), round(moments.std.item(), 3)
        (2.0, 1.0)
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...] = (), epsilon: float = 1e-5, *, independent: bool = False) -> None:
        super().__init__()
        self.epsilon, self.independent = epsilon, independent
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.full(shape if independent else (), 1e-4))

    @torch.no_grad()
    def update(self, batch: Tensor, mask: Tensor | None = None) -> None:
        """Merges a batch ``[n, *shape]``; one that is empty or not finite changes nothing.

        Args:
            batch (Tensor): samples.
            mask (Tensor, optional): bool ``[n]``, the samples that count. Default: all.
        """
        if batch.shape[0] == 0:
            return
        size: Tensor | int
        if mask is None:
            size, batch_mean, batch_var = batch.shape[0], batch.mean(0), batch.var(0, correction=0)
        else:
            # By sums: batch[mask] would wait for a GPU to tell its size.
            counts = mask.reshape(-1, *[1] * (batch.ndim - 1))
            size = counts.sum()
            batch_mean = torch.where(counts, batch, 0.0).sum(0) / size
            batch_var = torch.where(counts, batch - batch_mean, 0.0).square().sum(0) / size
        delta = batch_mean - self.mean
        total = self.count + size
        moment = self.var * self.count + batch_var * size
        var = (moment + delta.square() * self.count * size / total) / total
        mean = self.mean + delta * size / total
        finite = mean.isfinite() & var.isfinite()
        if not self.independent:
            finite = finite.all()
        for buffer, merged in ((self.var, var), (self.mean, mean), (self.count, total)):
            buffer.copy_(torch.where(finite, merged, buffer))

    @property
    def std(self) -> Tensor:
        """sqrt(var + epsilon)."""
        return (self.var + self.epsilon).sqrt()

    def normalize(self, x: Tensor, clip: float = math.inf) -> Tensor:
        """(x - mean) / std, clipped to [-clip, clip] (published rewards: 5)."""
        return ((x - self.mean) / self.std).clamp(-clip, clip)

    def unnormalize(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        return x * self.std + self.mean


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
        """Moves towards the range of a batch of any shape; one that is empty or not finite changes nothing."""
        if x.numel() == 0:
            return
        low, high = self.percentiles(x.detach())
        moved = self.value.lerp((high - low).clamp_min(1.0).to(self.value), self.tau)
        self.value.copy_(torch.where(x.isfinite().all(), moved, self.value))

    def reset_parameters(self) -> None:
        """Starts afresh, at 1."""
        self.value.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """x / S."""
        return x / self.value


class KeptStatistics:
    """Running statistics as they were, for updates that must leave no trace in them."""

    def __init__(self, module: nn.Module) -> None:
        kinds = (RunningMoments, PercentileScale)
        self.buffers = [buffer for part in module.modules() if isinstance(part, kinds) for buffer in part.buffers()]
        self.before = [buffer.clone() for buffer in self.buffers]

    def keep_if(self, allowed: Tensor) -> None:
        """Takes back what happened to them unless ``allowed``."""
        for buffer, before in zip(self.buffers, self.before):
            buffer.copy_(torch.where(allowed, buffer, before))
