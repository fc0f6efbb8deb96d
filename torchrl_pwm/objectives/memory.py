"""The hidden state of a recurrent policy, carried from step to step of a rollout."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.modules import set_recurrent_mode


class Memory:
    """Entries that a network such as TorchRL's ``GRUModule`` or ``LSTMModule`` hands from one step to the next.

    They are those that it reads at the root and writes under ``"next"``. A state without them begins afresh, with
    zeros; so does an env after its episode has ended.

    Args:
        network (TensorDictModule): the policy.
    """

    def __init__(self, network: TensorDictModuleBase) -> None:
        written = {_path(key) for key in network.out_keys}
        reads = [unravel_key(key) for key in network.in_keys]
        self.keys: list[NestedKey] = [key for key in reads if ("next", *_path(key)) in written]
        self.init_keys = [key for key in reads if _path(key)[-1] == "is_init"] if self.keys else []

    def __bool__(self) -> bool:
        return bool(self.keys)

    @property
    def entries(self) -> list[NestedKey]:
        """All that the memory needs in what the policy reads."""
        return [*self.keys, *self.init_keys]

    def stepping(self) -> AbstractContextManager[Any]:
        """Where the policy is called on single steps: TorchRL's losses take the first axis of a batch for time."""
        return set_recurrent_mode(False) if self.keys else nullcontext()

    def begin(self, tensordict: TensorDictBase) -> dict[Any, Tensor]:
        """The hidden states that start states carry, detached; none means zeros."""
        held = {key: tensordict.get(key, None) for key in self.keys}
        return {key: value.detach() for key, value in held.items() if value is not None}

    def recall(self, state: TensorDictBase, held: dict[Any, Tensor]) -> TensorDictBase:
        """Writes into a state ``[*]`` what the policy reads beside it."""
        for key, value in held.items():
            state.set(key, value)
        for key in self.keys:
            if key not in held:
                state.pop(key, None)
        for key in self.init_keys:
            state.set(key, torch.zeros(*state.batch_size, 1, dtype=torch.bool, device=_device(state)))
        return state

    def keep(self, state: TensorDictBase, ended: Tensor | None = None) -> dict[Any, Tensor]:
        """The hidden states that the policy wrote into a state, zero in envs that ``ended`` [*, 1]."""
        held = {key: state.get(unravel_key(("next", key))) for key in self.keys}
        return held if ended is None else {key: _zeroed(value, ended) for key, value in held.items()}

    def forget(self, tensordict: TensorDictBase, rows: Tensor) -> TensorDictBase:
        """Zeros the hidden states of some envs, bool [N], in place."""
        for key in self.keys:
            held = tensordict.get(key, None)
            if held is not None:
                tensordict.set(key, _zeroed(held, rows.unsqueeze(-1)))
        return tensordict


def _zeroed(value: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows.reshape(*rows.shape[:-1], *[1] * (value.ndim - rows.ndim + 1)), 0.0, value)


def _path(key: NestedKey) -> tuple[Any, ...]:
    key = unravel_key(key)
    return key if isinstance(key, tuple) else (key,)


def _device(state: TensorDictBase) -> torch.device:
    return next(iter(state.values(True, True))).device
