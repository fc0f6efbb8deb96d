"""Batched envs leave torch the threads that they found."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchrl

from torchrl_pwm import make_gym_env
from torchrl_pwm.envs import make_task_envs


@pytest.fixture(autouse=True)
def many_cores(monkeypatch):
    """As many threads to give back to as TorchRL sees on a large machine."""
    monkeypatch.setattr(torchrl, "_THREAD_POOL_INIT", 8)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("make", "threads"),
    [
        (partial(make_gym_env, "Pendulum-v1", 2), 1),
        (partial(make_task_envs, "pendulum-swingup", 2), 3),
        (partial(make_gym_env, "Pendulum-v1", 1, parallel=True), 1),
    ],
    ids=["Gymnasium", "MT80", "a process each"],
)
def test_a_closed_env_leaves_as_many_threads_as_before(make, threads):
    torch.set_num_threads(threads)
    env = make()
    env.reset()
    env.close()
    assert torch.get_num_threads() == threads
