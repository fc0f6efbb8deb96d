"""Constructor arguments of a network, which travel with its state dict."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

_ENTRY = "arguments"


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
