"""The symlog two-hot codec of TD-MPC2: scalars as distributions over bins that are linear in symlog space."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrl.modules import symexp, symlog

RewardSpace = Literal["raw", "symlog"]


class TwoHotCodec(nn.Module):
    """Encodes scalars as two-hot distributions over ``num_bins`` and decodes logits back.

    The bins b_k are evenly spaced over [vmin, vmax] **in symlog space** (TorchRL's own two-hot helpers space them
    in raw space: the two do not mix). ``num_bins=0`` passes values through; ``num_bins=1`` regresses symlog(x).
    Source: TD-MPC2 (arXiv 2310.16828), section 3.1 and appendix.

    Args:
        num_bins (int): number of bins K.
        vmin (float): smallest bin, in symlog space.
        vmax (float): largest bin, in symlog space.

    Raises:
        ValueError: if ``num_bins`` is negative or the range is empty.

    Examples:
        >>> import torch
        >>> codec = TwoHotCodec(101, -10.0, 10.0)
        >>> code = codec.encode(torch.tensor([[3.0]]))
        >>> round(codec.decode(code.clamp_min(1e-30).log()).item(), 4)
        3.0
    """

    bins: Tensor

    def __init__(self, num_bins: int, vmin: float = -10.0, vmax: float = 10.0) -> None:
        super().__init__()
        if num_bins < 0 or (num_bins > 1 and not vmin < vmax):
            raise ValueError(
                f"A two-hot codec needs num_bins >= 0 and vmin < vmax, found num_bins={num_bins}, "
                f"vmin={vmin}, vmax={vmax}."
            )
        self.num_bins, self.vmin, self.vmax = num_bins, float(vmin), float(vmax)
        self.register_buffer("bins", torch.linspace(vmin, vmax, max(num_bins, 1)), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """Two-hot code of raw scalars: ``[*, 1]`` to ``[*, K]`` (``[*, 1]`` without bins)."""
        if self.num_bins == 0:
            return x
        if self.num_bins == 1:
            return symlog(x)
        lower, upper, fraction = self._split(x)
        code = x.new_zeros(*x.shape[:-1], self.num_bins)
        return code.scatter_add(-1, lower, 1 - fraction).scatter_add(-1, upper, fraction)

    def decode(self, logits: Tensor, space: RewardSpace = "raw") -> Tensor:
        """Expected value of ``[*, K]`` logits as ``[*, 1]``, in raw units or left in symlog space.

        The published code calls the symlog form the "almost" inverse; PWM's actor maximises it by default.
        """
        if space not in ("raw", "symlog"):
            raise ValueError(f'space must be "raw" or "symlog", found {space!r}.')
        if self.num_bins == 0:
            return logits
        mean = logits
        if self.num_bins > 1:
            mean = (logits.softmax(-1) * self.bins).sum(-1, keepdim=True)
        return symexp(mean) if space == "raw" else mean

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Soft cross entropy of ``[*, K]`` logits against raw ``[*, 1]`` targets, as ``[*, 1]``.

        Without bins it is the squared error, in raw units (K = 0) or in symlog space (K = 1).
        """
        if self.num_bins <= 1:
            return F.mse_loss(logits, self.encode(target), reduction="none")
        lower, upper, fraction = self._split(target)
        log_probs = logits.log_softmax(-1)
        return -((1 - fraction) * log_probs.gather(-1, lower) + fraction * log_probs.gather(-1, upper))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two neighbouring bins of each value and the weight of the upper one."""
        width = (self.vmax - self.vmin) / (self.num_bins - 1)
        position = (symlog(x).clamp(self.vmin, self.vmax) - self.vmin) / width
        # A NaN has no bin: its weight carries it on to the loss, where it is found, from any bin that exists.
        lower = position.floor().long().clamp(0, self.num_bins - 1)
        return lower, (lower + 1) % self.num_bins, position - lower

    def extra_repr(self) -> str:
        return f"num_bins={self.num_bins}, vmin={self.vmin}, vmax={self.vmax}"
