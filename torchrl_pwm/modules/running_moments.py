"""Running mean and variance of a stream of batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RunningMoments(nn.Module):
    """Running mean and population variance, merged batch by batch (Chan et al.'s parallel formula).

    Buffers ``mean``, ``var`` [*shape] and ``count`` [] are saved with the module. Source: PWM's published code, which
    starts at mean 0, variance 1 and a count of 1e-4.

    Args:
        shape (tuple of int): shape of one sample. Default: ``()``.
        epsilon (float): added to the variance under the root. Default: ``1e-5``.

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

    def __init__(self, shape: tuple[int, ...] = (), epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.tensor(1e-4))

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Merges a batch ``[n, *shape]``."""
        size = batch.shape[0]
        delta = batch.mean(0) - self.mean
        total = self.count + size
        moment = self.var * self.count + batch.var(0, correction=0) * size
        self.var.copy_((moment + delta.square() * self.count * size / total) / total)
        self.mean.add_(delta * size / total)
        self.count.copy_(total)

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
