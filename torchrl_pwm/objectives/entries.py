"""Reading what a loss needs, with errors that name what is missing."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor


def require(tensordict: TensorDictBase, key: NestedKey, owner: object) -> Tensor:
    """The entry under ``key``.

    Raises:
        ValueError: if it is not there, with the entries that are.
    """
    value = tensordict.get(key, None)
    if value is None:
        entries = sorted(map(str, tensordict.keys(True, True)))
        raise ValueError(
            f"{type(owner).__name__} needs the entry {key!r}, found {entries}. "
            "Rename what it reads with loss.set_keys(...)."
        )
    return value


def require_reward(tensordict: TensorDictBase, key: NestedKey, owner: object) -> Tensor:
    """The rewards under ``key``, with TorchRL's last axis of one.

    Raises:
        ValueError: if they are not there, or have another last axis.
    """
    reward = require(tensordict, key, owner)
    if reward.shape[-1:] != (1,):
        raise ValueError(
            f"{type(owner).__name__} needs rewards of shape [*, 1] under {key!r}, found {tuple(reward.shape)}: "
            "add the last axis with reward.unsqueeze(-1)."
        )
    return reward
