"""Running a network on other weights than its own: on detached ones, or on those that a loss holds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor, nn

_Slot = tuple[dict[str, Any], str, Tensor]  # where a module keeps a weight, its name there, and one to put in its place


class swapped(AbstractContextManager[None]):
    """A context in which ``module`` runs on ``params``; however it ends, the module has its own weights again.

    TensorDict's own context, ``with params.to_module(module)``, gives them back only where no error is raised. It takes
    as long as the network itself where that is small, so that it serves only while code is compiled, and for modules
    that keep their weights in a place of their own (recurrent layers).

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
        self._held: list[_Slot] | None = None
        slots = None if torch.compiler.is_compiling() else self._slots()
        if slots is None:
            self._enter_by_tensordict()
            return
        self._held = [(owner, name, owner[name]) for owner, name, _ in slots]
        _put(slots)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._held is None:
            self._swap.__exit__(None, None, None)
        else:
            _put(self._held)

    def _slots(self) -> list[_Slot] | None:
        """Where the weights go, or None where TensorDict must put them."""
        slots: list[_Slot] = []
        known = _match(self.module, self.params, slots)
        # TensorDict would make a parameter of a tensor that takes the place of one.
        kept = not self.preserve_module_state or all(
            isinstance(value, nn.Parameter) or not isinstance(owner[name], nn.Parameter) for owner, name, value in slots
        )
        return slots if known and kept else None

    def _enter_by_tensordict(self) -> None:
        self._swap = self.params.to_module(self.module, preserve_module_state=self.preserve_module_state)
        self._swap.__enter__()


class _frozen(swapped):
    def __init__(self, module: nn.Module, params: TensorDictBase | None) -> None:
        self.module, self.given, self.preserve_module_state = module, params, False

    def _slots(self) -> list[_Slot] | None:
        slots: list[_Slot] = []
        if self.given is not None:
            known = _match(self.module, self.given, slots)
        else:
            modules = list(self.module.modules())
            known = all(map(_is_plain, modules))
            for module in modules:
                slots += [
                    (module._parameters, name, value) for name, value in module._parameters.items() if value is not None
                ]
        return [(owner, name, _detached(value)) for owner, name, value in slots] if known else None

    def _enter_by_tensordict(self) -> None:
        params = TensorDict.from_module(self.module) if self.given is None else self.given
        self.params = params.data
        super()._enter_by_tensordict()


def _detached(weight: Tensor) -> Tensor:
    """Under autocast matrices are narrowed here, once, and not at every use."""
    kind = weight.device.type
    if weight.ndim < 2 or kind == "meta" or not torch.is_autocast_enabled(kind):
        return weight.detach()
    return weight.detach().to(torch.get_autocast_dtype(kind))


def _put(slots: list[_Slot]) -> None:
    for owner, name, value in slots:
        owner[name] = value


def _is_plain(module: nn.Module) -> bool:
    """Whether a module's weights are found where torch puts them."""
    return type(module).__setattr__ is nn.Module.__setattr__ and not isinstance(module, TensorDictParams)


def _match(module: nn.Module, params: TensorDictBase, slots: list[_Slot]) -> bool:
    """Finds the place of each weight in a module, if all have one."""
    if not _is_plain(module):
        return False
    for key, value in params.items():
        if not isinstance(value, Tensor):
            child = module._modules.get(key)
            if child is None or not _match(child, value, slots):
                return False
            continue
        owner = next((owner for owner in (module._parameters, module._buffers) if owner.get(key) is not None), None)
        if owner is None:
            return False
        slots.append((owner, key, value))
    return True


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
    return _frozen(module, params)
