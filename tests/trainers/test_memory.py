"""Memory stays where it is: what updates leave behind after 500 of them is what they had left after 100."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from tests.devices.parts import make_model, make_policy_loss, sequences
from torchrl_pwm import PWMWorldModelLoss
from torchrl_pwm.trainers import PWMOptimizationStepper, WorldModelOptimizationStepper
from torchrl_pwm.trainers.stacked import StackedPWMUpdate

EARLY, LATE = 100, 500
PAGES = 4 * 2**20  # bytes, of the allocator's own


def policy():
    loss = make_policy_loss(make_model("scalar head", "cpu").requires_grad_(False), horizon=1)
    starts = sequences("scalar head", "cpu", batch=2)[:, 0]
    stepper = PWMOptimizationStepper(loss, critic_iterations=1, critic_batches=1, iterations=LATE)
    return lambda: stepper.update(starts)


def policies_together():
    model = make_model("scalar head", "cpu").requires_grad_(False)
    losses = [make_policy_loss(model, horizon=1) for _ in range(2)]
    starts = torch.stack([sequences("scalar head", "cpu", batch=2)[:, 0]] * 2)
    settings = {"critic_iterations": 1, "critic_batches": 1, "iterations": LATE}
    together = StackedPWMUpdate([PWMOptimizationStepper(loss, **settings) for loss in losses])

    def update():
        together.update(starts)
        together.failures()

    return update


def world_model():
    batch = sequences("scalar head", "cpu", batch=2)
    stepper = WorldModelOptimizationStepper(PWMWorldModelLoss(make_model("scalar head", "cpu")), iterations=LATE)
    return lambda: stepper.update(batch)


def left_behind():
    """Tensors that are alive, and resident bytes of the process."""
    gc.collect()
    tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return tensors, pages * 4096


@pytest.mark.parametrize("make", [policy, policies_together, world_model])
def test_updates_leave_nothing_behind(make):
    torch.manual_seed(0)
    update = make()
    for _ in range(EARLY):
        update()
    tensors, resident = left_behind()
    for _ in range(LATE - EARLY):
        update()
    later, after = left_behind()
    assert later <= tensors + 2, "tensors were kept"
    assert after <= resident + PAGES, "memory was kept"
