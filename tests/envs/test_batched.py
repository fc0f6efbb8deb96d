"""Batched envs leave torch the threads that they found, and wait for their workers."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
import torchrl
from torchrl.envs import ParallelEnv

from tests.envs.drift_env import DriftEnv
from torchrl_pwm import make_gym_env
from torchrl_pwm.envs import make_task_envs
from torchrl_pwm.envs.simulators.state import load_env, save_env


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


class Slow(DriftEnv):
    """An env that its parent would not wait for, if it thought the step done."""

    def _step(self, tensordict):
        time.sleep(0.3)
        return super()._step(tensordict)


def test_a_step_after_a_state_was_loaded_waits_for_its_worker():
    env = ParallelEnv(1, Slow)
    try:
        td = env.reset()
        load_env(env, save_env(env, td))
        found = env.step(td.set("action", torch.ones(1, 2)))["next", "observation"]
        assert torch.equal(found, td["observation"] + torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
    finally:
        env.close()
