"""Access to private names of TorchRL, for which it has no public ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import ReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.envs import EnvBase, ParallelEnv
from torchrl.envs.common import _EnvPostInit
from torchrl.envs.utils import _classproperty

#: The metaclass of TorchRL's envs, which wraps an env once it is built.
EnvMeta = _EnvPostInit
#: A property of a class, such as an env's ``available_envs``.
classproperty = _classproperty


def collector_td(collector: Collector) -> TensorDictBase:
    """The TensorDict that the collector's next step starts from."""
    return collector._carrier


def set_collector_td(collector: Collector, td: TensorDictBase) -> None:
    """Has the collector's next step start from the entries of ``td``, and no others."""
    collector._carrier = collector._carrier.empty().update(td)


def lower_flags(env: EnvBase) -> None:
    """To be called where an env without its transforms has loaded a state, and before its next step.

    The workers of a ``ParallelEnv`` then raise the flags that a step waits for, and its load does not lower them: every
    later step would be taken for done while its worker is still at it, and read what was there before.
    """
    if isinstance(env, ParallelEnv) and env._use_buffers:
        for index in env._worker_indices:
            env._shm_done_flags[index] = 0


def buffer_generator(buffer: ReplayBuffer) -> torch.Generator | None:
    """The generator that the buffer was given; ``set_rng`` is public, but only writes."""
    return buffer._rng


def sampler_generator(sampler: Sampler) -> torch.Generator | None:
    """The generator of the buffer that the sampler belongs to, if that was given one."""
    return sampler._rng


def buffer_prefetches(buffer: Any) -> bool:
    """Whether the buffer reads batches ahead; other sources of batches do not."""
    return bool(getattr(buffer, "_prefetch", False))


def prefetch_in_one_thread(buffer: ReplayBuffer) -> None:
    """Has a buffer that prefetches do so in one thread: of several, the order of the draws would be their choice."""
    if buffer_prefetches(buffer):
        buffer._prefetch_executor.shutdown()
        buffer._prefetch_executor = ThreadPoolExecutor(max_workers=1)


def fitting_prefetched(buffer: ReplayBuffer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict for a buffer that reads another number of batches ahead than the saved one did.

    Batches that were read ahead must not be lost: a buffer that reads fewer ahead reads as many from now on.
    """
    ahead = state_dict["_prefetch_state"]
    if len(ahead["queue"]) > buffer._prefetch_cap:
        buffer._prefetch, buffer._prefetch_cap = True, len(ahead["queue"])
        buffer._prefetch_executor = ThreadPoolExecutor(max_workers=1)
    return {**state_dict, "_prefetch_state": {**ahead, "capacity": buffer._prefetch_cap}}


def map_prefetched(state_dict: Mapping[str, Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    """A buffer's state dict with ``function`` of each batch ``(data, info)`` that was read ahead in its place."""
    ahead = state_dict["_prefetch_state"]
    return {**state_dict, "_prefetch_state": {**ahead, "queue": tuple(map(function, ahead["queue"]))}}


def without_prefetched(
    state_dict: Mapping[str, Any], generator_before: Callable[[int], torch.Tensor]
) -> dict[str, Any]:
    """A buffer's state dict as if it had read nothing ahead.

    ``generator_before`` gives the state of the generator before the last so many draws.
    """
    ahead = state_dict["_prefetch_state"]
    generator, (_, device) = generator_before(len(ahead["queue"])), state_dict["_rng"]
    sampler = {**state_dict["_sampler"], "generator": generator}
    return {**state_dict, "_sampler": sampler, "_rng": (generator, device), "_prefetch_state": {**ahead, "queue": ()}}
