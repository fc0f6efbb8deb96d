"""Latents whose dynamics are a change of the latent rather than a new one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from torchrl_pwm.modules.layers import SimNorm

__all__ = ["ResidualLatent"]

_SMALLEST = 1e-8


class ResidualLatent(nn.Module):
    """The normalisation of a residual world model's latents, and their step z' = norm(norm^-1(z) + change).

    With SimNorm, a softmax in groups, norm^-1 is the logarithm, up to a constant in each group that the softmax does
    not see; without, norm is layer normalisation without parameters and norm^-1 the identity. Not in the paper.

    Args:
        simnorm_dim (int): SimNorm group size, or 0 for layer normalisation.

    Examples:
        >>> import torch
        >>> latents = ResidualLatent(simnorm_dim=2)
        >>> z = latents(torch.tensor([[0.0, 1.0]]))
        >>> torch.allclose(latents.step(z, torch.zeros(1, 2)), z)
        True
    """

    def __init__(self, simnorm_dim: int) -> None:
        super().__init__()
        self.simnorm = SimNorm(simnorm_dim) if simnorm_dim else None

    def forward(self, x: Tensor) -> Tensor:
        """Any ``[*, D]`` to latents ``[*, D]``."""
        return F.layer_norm(x, x.shape[-1:]) if self.simnorm is None else self.simnorm(x)

    def step(self, latent: Tensor, change: Tensor) -> Tensor:
        """The next latent ``[*, D]``."""
        return self(change + (latent if self.simnorm is None else latent.clamp_min(_SMALLEST).log()))
