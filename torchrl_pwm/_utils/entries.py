"""Entries that a module reads of a TensorDict."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

__all__ = ["require"]


def require(tensordict: TensorDictBase, key: NestedKey, owner: object, advice: str = "") -> Tensor:
    """The entry under ``key``.

    Args:
        tensordict: what was given.
        key: name of the entry.
        owner: who needs it, for the message.
        advice: what to do if it has another name. Default: to rename it with ``loss.set_keys``.

    Raises:
        ValueError: if it is not there, with the entries that are.
    """
    value = tensordict.get(key, None)
    if value is None:
        entries = sorted(map(str, tensordict.keys(True, True)))
        advice = advice or "Rename what it reads with loss.set_keys(...)."
        raise ValueError(f"{type(owner).__name__} needs the entry {key!r}, found {entries}. {advice}")
    return value
