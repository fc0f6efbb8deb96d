"""Running a network on other weights than its own: on detached ones, or on those that a loss holds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from tensordict import TensorDict, TensorDictBase
from torch import nn


class swapped(AbstractContextManager[None]):
    """A context in which ``module`` runs on ``params``; however it ends, the module has its own weights again.

    TensorDict's own context, ``with params.to_module(module)``, gives them back only where no error is raised.

    Args:
        module (nn.Module): the network.
        params (TensorDictBase): weights to run it on.
        preserve_module_state (bool): see :meth:`TensorDict.to_module`. Default: ``True``.

    Examples:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1)
        >>> params = TensorDict.from_module(net).clone()
        >>> try:
        ...     with swapped(net, params):
        ...         net(torch.ones(1, 3))
        ... except RuntimeError:
        ...     len(list(net.parameters()))
        2
    """

    def __init__(self, module: nn.Module, params: TensorDictBase, *, preserve_module_state: bool = True) -> None:
        self.module, self.params, self.preserve_module_state = module, params, preserve_module_state

    def __enter__(self) -> None:
        self._swap = self.params.to_module(self.module, preserve_module_state=self.preserve_module_state)
        self._swap.__enter__()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._swap.__exit__(None, None, None)


def frozen(module: nn.Module, params: TensorDictBase | None = None) -> swapped:
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
    return swapped(module, params.data, preserve_module_state=False)
