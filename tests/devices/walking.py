"""All tensors that a trainer learns with, wherever they are held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase

from torchrl_pwm.data.sampling import ReplaySampling

#: Data and envs may live elsewhere; a generator's state is always on the CPU.
_ELSEWHERE = (ReplayBuffer, ReplaySampling, BaseCollector, EnvBase, torch.Generator)
#: Counts that the host itself decides by, so that no device is waited for.
_OF_THE_HOST = ("n_averaged",)


def tensors_of(part: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every parameter, buffer, optimiser state and other tensor that is reached from ``part``."""
    seen = set() if seen is None else seen
    if isinstance(part, Tensor):
        yield name, part
        return
    if id(part) in seen or isinstance(part, _ELSEWHERE):
        return
    seen.add(id(part))
    if isinstance(part, nn.Module):
        yield from ((f"{name}.{key}", value) for key, value in part.named_parameters())
        yield from ((f"{name}.{key}", value) for key, value in part.named_buffers())
    elif isinstance(part, Optimizer):
        for index, (_, state) in enumerate(part.state.items()):
            yield from tensors_of(state, f"{name}.state[{index}]", seen)
        yield from tensors_of(part.param_groups, f"{name}.param_groups", seen)
    elif isinstance(part, Mapping):
        for key, value in part.items():
            yield from tensors_of(value, f"{name}.{key}", seen)
    elif isinstance(part, (list, tuple)):
        for index, value in enumerate(part):
            yield from tensors_of(value, f"{name}[{index}]", seen)
    elif type(part).__module__.startswith("torchrl_pwm."):
        yield from tensors_of(vars(part), name, seen)


def assert_one_device(trainer: Any, device: str) -> None:
    """All components of a trainer and the states of its optimisers are on one device."""
    found = {name: value.device.type for name, value in tensors_of(trainer.components)}
    elsewhere = {name: place for name, place in found.items() if place != device and not name.endswith(_OF_THE_HOST)}
    assert not elsewhere
    assert any("exp_avg_sq" in name for name in found), "no optimiser has made a step"
