"""Constructor arguments of a network, which travel with its state dict."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from torchrl_pwm._utils.door import making, read_tensors
from torchrl_pwm._utils.errors import DamagedFileError

_ENTRY = "arguments"
_LONGEST = 10_000
# Buffers may be made that a file of weights lacks, and parameters that are replaced: numbers, and tensors.
_LARGER, _FREELY, _FREE_TENSORS = 2, 1 << 20, 64
# Five hundred layers, which take a second or two: no world model or policy has a tenth of them.
_MOST_TENSORS = 2048


class Rebuildable(nn.Module):
    """A module that knows the arguments it was built with, and whose state dict carries them.

    They stand in the state dict's metadata, where torch keeps the version of each module: the entries stay those of the
    published layout, and ``torch.save`` and ``torch.load(weights_only=True)`` keep the metadata. A state dict of other
    arguments under which the same weights mean something else is refused by ``load_state_dict``.
    """

    def _remember_arguments(self, given: Mapping[str, Any]) -> None:
        """Keeps the arguments of the constructor, except modules; to be called first in it, with ``locals()``.

        An argument that the constructor gains is thereby kept without further ado.
        """
        values = {name: value for name, value in given.items() if name not in ("self", "__class__")}
        kept = {name: plain(value) for name, value in values.items() if not isinstance(value, nn.Module)}
        self.__dict__.setdefault("_arguments", kept)

    def _change_arguments(self, **changed: Any) -> None:
        """Notes that the module has become one that other arguments would have built."""
        self.__dict__["_arguments"] = {**self.constructor_arguments, **{k: plain(v) for k, v in changed.items()}}

    @property
    def _untold(self) -> tuple[str, ...]:
        """Arguments that change what the module computes, and that neither names nor shapes of its weights tell."""
        return ()

    @property
    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, as plain numbers, strings, lists and dictionaries."""
        return dict(self.__dict__.get("_arguments", {}))

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Any:
        """A new module that is built as :attr:`constructor_arguments` of another one say."""
        return cls(**arguments)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Parameters and buffers, as torch has them; the constructor's arguments are in the metadata."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        metadata = getattr(state, "_metadata", None)
        if metadata is not None and prefix[:-1] in metadata:
            metadata[prefix[:-1]][_ENTRY] = self.constructor_arguments
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        saved, own = local_metadata.get(_ENTRY) or {}, self.constructor_arguments
        different = [
            f"{name}={saved[name]} (here {own[name]})"
            for name in self._untold
            if name in saved and name in own and saved[name] != own[name]
        ]
        if different:
            args[-1].append(  # torch's list of what is wrong
                f"The weights are of a {type(self).__name__} with {', '.join(different)}, under which they mean "
                "something else: build this one with the same."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def build_for(
    weights: Mapping[str, Any], make: Callable[..., Any], arguments: Mapping[str, Any], **further: Any
) -> Any:
    """What ``make`` builds of arguments that came with weights, if it is for as many numbers as these are.

    Arguments out of a file may ask for more memory than there is, or for more layers than are built in an hour: the
    size is found out without any memory, and building ends where there are more layers than weights.

    Raises:
        DamagedFileError: if the arguments are of a much larger module.

    Examples:
        >>> weights = nn.Linear(2, 2).state_dict()
        >>> build_for(weights, nn.Linear, {"in_features": 2, "out_features": 2})
        Linear(in_features=2, out_features=2, bias=True)
        >>> build_for(weights, nn.Linear, {"in_features": 10**6, "out_features": 10**6})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        torchrl_pwm._utils.errors.DamagedFileError: The arguments make a network of 1000000000000 numbers or more, ...
    """
    modules = any(isinstance(value, nn.Module) for value in (*arguments.values(), *further.values()))
    long = [name for name, value in arguments.items() if isinstance(value, (list, tuple)) and len(value) > _LONGEST]
    if long:
        raise DamagedFileError(f"The arguments {long} hold more than {_LONGEST} entries each.")
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    found, numbers = len(tensors), sum(value.numel() for value in tensors)
    if not modules:  # those are there already, and may not like other devices
        with torch.device("meta"), _no_more_than(found, numbers):
            shell = make(**arguments, **further)
        needed = sum(value.numel() for value in shell.state_dict().values())
        if needed > _LARGER * numbers + _FREELY:
            raise _too_much(f"{needed} numbers", numbers)
    with _no_more_than(found, numbers):
        return make(**arguments, **further)


def network_of_file(
    path: str | os.PathLike[str], make: Callable[[], Any], *, what: str, part: str | None = None
) -> Any:
    """The network of a file of weights, built as something else than the file says, such as a configuration beside it.

    Args:
        path: the file.
        make: builds the network, without its weights.

    Keyword Args:
        what: name of what is expected, for messages.
        part: the entry of the file that holds the weights; None if it holds nothing else.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no file of tensors, or damaged, or ``make`` makes another, or a much larger network.
    """
    contents = read_tensors(path, what=what, finite=True)
    with making(what, path):
        weights = contents if part is None else contents[part]
        network = build_for(weights, make, {})
        network.load_state_dict(weights)
    return network


@contextlib.contextmanager
def _no_more_than(tensors: int, numbers: int) -> Iterator[None]:
    """Refuses a parameter beyond those of so many tensors and numbers as it is given to a module of the block."""
    made = [0, 0]
    thread = threading.get_ident()  # a hook is of all modules, those that another thread builds too

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or threading.get_ident() != thread:
            return
        made[0] += 1
        made[1] += parameter.numel()
        if made[1] > _LARGER * numbers + _FREELY:
            raise _too_much(f"{made[1]} numbers or more", numbers)
        if made[0] > _LARGER * tensors + _FREE_TENSORS:
            raise _too_much(f"{made[0]} tensors or more", tensors)
        if made[0] > _MOST_TENSORS:
            raise DamagedFileError(f"The arguments make a network of more than {_MOST_TENSORS} tensors.")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _too_much(needed: str, found: int) -> DamagedFileError:
    return DamagedFileError(
        f"The arguments make a network of {needed}, but the weights that came with them are {found}."
    )


def saved_arguments(state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Any] | None:
    """The constructor's arguments of the module at ``prefix`` that a state dict carries, or None.

    Examples:
        >>> from torchrl_pwm import PWMWorldModel
        >>> saved_arguments(PWMWorldModel(5, 2, latent_dim=16, simnorm_dim=4).state_dict())["simnorm_dim"]
        4
    """
    metadata = getattr(state_dict, "_metadata", None)
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get(prefix.rstrip(".")), Mapping):
        return None
    arguments = metadata[prefix.rstrip(".")].get(_ENTRY)
    return dict(arguments) if isinstance(arguments, Mapping) else None


def with_arguments(state_dict: Mapping[str, Any], arguments: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """A state dict that carries these arguments of its module's constructor."""
    state: Any = OrderedDict(state_dict)
    state._metadata = OrderedDict({"": {"version": 1, _ENTRY: dict(arguments)}})
    return state


def plain(value: Any) -> Any:
    """A value as JSON and a file of tensors can hold it: tuples become lists, arrays numbers.

    Examples:
        >>> plain((1, 2.5, None))
        [1, 2.5, None]
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Iterable):
        return [plain(entry) for entry in value]
    raise TypeError(f"A constructor's argument must be a number, a string or a sequence of them, found {value!r}.")
