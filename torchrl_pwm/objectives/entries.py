"""Reading what a loss needs, with errors that name what is missing or not finite."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_pwm._utils.devices import readable
from torchrl_pwm._utils.finite import all_finite, describe_batch


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


def require_batch(tensordict: TensorDictBase, owner: object) -> None:
    """Raises ValueError if the batch has no entry to learn from."""
    if tensordict.batch_size.numel() == 0:
        raise ValueError(
            f"{type(owner).__name__} needs at least one state, found a batch of shape "
            f"{list(tensordict.batch_size)}: leave empty batches out."
        )


def require_finite(tensordict: TensorDictBase, losses: TensorDictBase, owner: object) -> None:
    """Checks what was read and what came out; one host read, none in a compiled or captured call or on ``meta``.

    Raises:
        FloatingPointError: if a number is not finite; the entry, its tasks and rows are named.
    """
    values = [value for td in (tensordict, losses) for value in td.values(True, True)]
    if readable(*values) and not all_finite(values):
        raise FloatingPointError(
            f"{type(owner).__name__}: expected finite numbers, found others; {describe_batch(tensordict)}."
        )
