"""An ensemble of Q functions evaluated together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrl_pwm.modules.kernels import mish
from torchrl_pwm.modules.layers import ResetsItself, stacked_mlps
from torchrl_pwm.modules.stacks import as_wide


class QEnsemble(ResetsItself, nn.Module):
    """N MLPs on one input: ``[*, I]`` to ``[N, *, K]``.

    Hidden layers are Linear -> LayerNorm -> Mish, with dropout between the first linear map and its normalisation.
    Parameters are stacked along the first axis, in the published order: weight, bias, norm gain, norm bias of each
    hidden layer, then weight and bias. Source: TD-MPC2 (arXiv 2310.16828), section 3.1 and appendix.

    Args:
        in_features (int): size I of the input.
        units (sequence of int): hidden layers.
        out_features (int): size K of each net's output.
        num_nets (int): number N of nets.
        dropout (float): share of first-layer features that training drops.

    Raises:
        ValueError: if a number is out of its range.

    Examples:
        >>> import torch
        >>> q = QEnsemble(6, (16, 16), 11)
        >>> q(torch.randn(4, 6)).shape, q(torch.randn(4, 6), members=torch.tensor([3, 1])).shape
        (torch.Size([5, 4, 11]), torch.Size([2, 4, 11]))
    """

    def __init__(
        self, in_features: int, units: Sequence[int], out_features: int, num_nets: int = 5, dropout: float = 0.01
    ) -> None:
        super().__init__()
        if not units or num_nets < 1 or not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"A Q ensemble needs hidden layers, num_nets >= 1 and 0 <= dropout < 1, found units={tuple(units)}, "
                f"num_nets={num_nets} and dropout={dropout}."
            )
        self.num_nets, self.dropout = num_nets, dropout
        self.params = stacked_mlps(num_nets, in_features, units, out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal weights (std 0.02), zero biases, neutral norms, last weight zero."""
        for index, param in enumerate(self.params):
            if index % 4 == 0:
                nn.init.trunc_normal_(param, std=0.02)
            else:
                nn.init.constant_(param, 1.0 if index % 4 == 2 else 0.0)
        nn.init.zeros_(self.params[len(self.params) - 2])

    def forward(self, x: Tensor, members: Tensor | None = None, *, dropout: bool = True) -> Tensor:
        """``[*, I]`` to ``[N, *, K]``, or ``[n, *, K]`` of the nets whose indices are ``members`` [n].

        ``dropout=False`` leaves dropout out in training mode too.
        """
        params = list(self.params)
        if members is not None:
            params = [param[members] for param in params]
        hidden = x.reshape(-1, x.shape[-1]).expand(params[0].shape[0], -1, -1)
        for layer in range(0, len(params) - 2, 4):
            weight, bias, gain, shift = (param.unsqueeze(1) for param in params[layer : layer + 4])
            hidden = torch.baddbmm(bias, hidden, weight.squeeze(1).mT)
            if layer == 0 and dropout:
                hidden = F.dropout(hidden, self.dropout, self.training)
            hidden = mish(F.layer_norm(hidden, hidden.shape[-1:]) * gain + shift)
        out = torch.baddbmm(params[-1].unsqueeze(1), hidden, params[-2].mT)
        return as_wide(out, x).view(out.shape[0], *x.shape[:-1], -1)

    def extra_repr(self) -> str:
        return f"num_nets={self.num_nets}, dropout={self.dropout}"
