"""Running a network without training it."""

from __future__ import annotations

from contextlib import AbstractContextManager

from tensordict import TensorDict, TensorDictBase
from torch import nn


def frozen(module: nn.Module, params: TensorDictBase | None = None) -> AbstractContextManager:
    """A context in which ``module`` runs on detached weights: gradients pass through it, none reaches the weights.

    TorchRL's ``hold_out_net`` switches ``requires_grad`` instead, for all parameters alike, and would leave a partly
    frozen model trainable.

    Args:
        module (nn.Module): the network to freeze.
        params (TensorDictBase, optional): weights to run it on. Default: its own.

    Examples:
        >>> import torch
        >>> net, x = torch.nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
        >>> with frozen(net):
        ...     net(x).sum().backward()
        >>> net.weight.grad is None, x.grad is None
        (True, False)
    """
    params = TensorDict.from_module(module) if params is None else params
    return params.data.to_module(module, preserve_module_state=False)
