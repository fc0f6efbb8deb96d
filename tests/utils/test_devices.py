"""Generators of a checkpoint on another host, and tensors on another device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Composite

from torchrl_pwm._utils.devices import place_buffers, readable, reads_ahead, send, spec_on
from torchrl_pwm._utils.seeds import TorchGenerators, make_generator


@pytest.mark.parametrize("there", [0, 1, 2, 4])
def test_generators_go_on_as_far_as_the_host_has_gpus(there, monkeypatch):
    """A host is told by what torch.cuda says of it."""
    saved = {"cpu": torch.get_rng_state(), "cuda": [torch.tensor([index]) for index in range(2)]}
    found = {}

    def set_rng_state(state, index):
        if index >= there:
            raise RuntimeError("invalid device ordinal")
        found[index] = int(state)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_rng_state)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state_all", lambda states: [set_rng_state(s, i) for i, s in enumerate(states)]
    )
    TorchGenerators().load_state_dict(saved)
    assert found == {index: index for index in range(min(there, 2))}


def test_a_batch_is_sent_to_a_device_and_stays_without_one(device):
    batch = TensorDict({"a": torch.arange(3), "next": {"b": torch.ones(3, 1)}}, [3])
    assert send(batch, None) is batch
    sent = send(batch, device)
    assert sent["next", "b"].device.type == device and torch.equal(sent["a"].cpu(), batch["a"])
    assert send(batch, "meta")["a"].device.type == "meta"
    assert torch.equal(send(sent, device)["a"], sent["a"])


def test_batches_are_read_ahead_for_a_gpu_alone():
    assert reads_ahead("cpu") == {} and reads_ahead("cuda:1") == reads_ahead("cuda") != {}


def test_buffers_follow_the_parameters():
    module = nn.Sequential(nn.Linear(2, 2).to("meta"), nn.BatchNorm1d(2, affine=False))
    place_buffers(module)
    assert {buffer.device.type for buffer in module.buffers()} == {"meta"}


def test_numbers_of_meta_are_not_read():
    assert readable(torch.ones(2), None) and not readable(torch.ones(2), torch.ones(2, device="meta"))


def test_bounds_on_meta_are_a_part_of_specs_as_elsewhere():
    spec = spec_on(Bounded(-1.0, 1.0, (3, 2)), "meta")
    assert Composite({"action": spec}, shape=[3], device="meta")["action"].shape == (3, 2)
    assert spec_on(Bounded(-1.0, 1.0, (3,)), "cpu").space.high.tolist() == [1.0] * 3


def test_a_generator_draws_for_its_device(device):
    draws = [torch.rand(3, generator=make_generator(device, 5), device=device) for _ in range(2)]
    assert torch.equal(*draws)
    assert torch.rand(3, generator=make_generator("meta", 5), device="meta").device.type == "meta"


def test_memory_that_was_freed_is_taken_again_without_faults():
    # In processes of their own: what the C library keeps depends on all that was freed before.
    script = """
import resource, sys
from torchrl_pwm._utils.devices import keep_freed_memory

def update():
    blocks = [bytearray(1 << 20) for _ in range(50)]
    for block in blocks:
        block[::4096] = bytes(256)

if sys.argv[1] == "keep":
    keep_freed_memory()
update(), update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
update()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True, text=True).stdout)
        for how in ("keep", "return")
    )
    assert kept < returned / 10
