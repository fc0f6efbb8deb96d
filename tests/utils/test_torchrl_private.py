"""Each private name of TorchRL that this package relies on is there and means what it is used for."""

from __future__ import annotations

import threading

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers.samplers import RandomSampler
from torchrl.envs import EnvBase

from torchrl_pwm._utils.torchrl_private import (
    EnvMeta,
    buffer_generator,
    buffer_prefetches,
    classproperty,
    collector_td,
    map_prefetched,
    prefetch_in_one_thread,
    sampler_generator,
    set_collector_td,
)
from torchrl_pwm.envs.simulators import AnalyticEnv


def make_buffer(**options):
    buffer = ReplayBuffer(storage=LazyTensorStorage(10), batch_size=2, **options)
    buffer.extend(TensorDict({"step": torch.arange(10)}, [10]))
    return buffer


@pytest.fixture
def collector():
    collector = Collector(AnalyticEnv("double_pendulum", 3), frames_per_batch=12, total_frames=-1)
    yield collector
    collector.shutdown()


def test_collector_carrier_is_where_the_next_step_starts(collector):
    """``Collector._carrier``, with which a checkpoint saves the state of an env."""
    batches = iter(collector)
    last = next(batches)["next", "observation"][:, -1]
    assert torch.equal(collector_td(collector)["observation"], last)
    assert torch.equal(next(batches)["observation"][:, 0], last)


def test_collector_carrier_can_be_replaced(collector):
    """``Collector._carrier``, with which a checkpoint restores the state of an env."""
    batches = iter(collector)
    first = next(batches)
    before = collector_td(collector).clone()
    next(batches)
    before["observation"] = first["observation"][:, 0]
    set_collector_td(collector, before)
    assert torch.equal(next(batches)["observation"][:, 0], first["observation"][:, 0])


def test_rng_is_the_generator_that_a_buffer_and_its_sampler_draw_from():
    """``ReplayBuffer._rng`` and ``Sampler._rng``, which checkpoints save and samplers draw from."""
    generator = torch.Generator().manual_seed(1)
    buffer = make_buffer(generator=generator)
    assert buffer_generator(buffer) is generator and sampler_generator(buffer.sampler) is generator
    before = generator.get_state()
    buffer.sample()
    assert not torch.equal(generator.get_state(), before)
    assert buffer_generator(make_buffer()) is None and sampler_generator(RandomSampler()) is None


def test_prefetch_says_whether_batches_are_read_ahead():
    """``ReplayBuffer._prefetch``, as a checkpoint cannot hold what other buffers read ahead."""
    assert buffer_prefetches(make_buffer(prefetch=2))
    assert not buffer_prefetches(make_buffer()) and not buffer_prefetches(object())


class Noting(RandomSampler):
    def __init__(self):
        super().__init__()
        self.threads = set()

    def sample(self, storage, batch_size):
        self.threads.add(threading.get_ident())
        return super().sample(storage, batch_size)


def test_prefetch_executor_is_what_reads_ahead():
    """``ReplayBuffer._prefetch_executor``, replaced for the order of the draws."""
    buffer = make_buffer(prefetch=4, sampler=Noting(), generator=torch.Generator())
    prefetch_in_one_thread(buffer)
    for _ in range(10):
        buffer.sample()
    buffer.state_dict()  # waits for what is read ahead
    assert len(buffer.sampler.threads - {threading.get_ident()}) == 1
    prefetch_in_one_thread(make_buffer())


def test_prefetch_state_is_where_a_state_dict_has_what_was_read_ahead():
    """The entry ``_prefetch_state`` of ``ReplayBuffer.state_dict()``, saved as item numbers and read again."""
    buffer, other = (make_buffer(prefetch=3, generator=torch.Generator()) for _ in range(2))
    buffer.sample()
    state = map_prefetched(buffer.state_dict(), lambda result: (result[0] + 100, result[1]))
    other.load_state_dict(state)
    expected = [buffer.sample()["step"] + 100 for _ in range(3)]
    assert all(torch.equal(other.sample()["step"], steps) for steps in expected)


def test_env_meta_is_what_torchrl_builds_envs_with():
    """``torchrl.envs.common._EnvPostInit``, which simulator envs extend to be built by name in worker processes."""
    assert type(EnvBase) is EnvMeta


def test_a_classproperty_is_read_from_class_and_instance():
    """``torchrl.envs.utils._classproperty``, as TorchRL's own wrappers list their ``available_envs``."""

    class Envs:
        @classproperty
        def available_envs(cls):
            return [cls.__name__]

    assert Envs.available_envs == Envs().available_envs == ["Envs"]
