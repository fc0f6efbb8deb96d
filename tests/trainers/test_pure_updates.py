"""Updates read no number: what is not finite is kept out on the device and named later, with nothing changed."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.devices.parts import META, MODELS, make_model, make_policy_loss, make_tdmpc2, sequences
from tests.devices.reads import HostReads
from tests.trainers.tiny import assert_same
from torchrl_pwm import PWMWorldModelLoss, TDMPC2Loss
from torchrl_pwm._utils.gated_steps import GatedAdam
from torchrl_pwm.trainers import (
    PWMOptimizationStepper,
    TDMPC2OptimizationStepper,
    WorldModelOptimizationStepper,
)

# Planning and Q functions need bins.
BINNED = [name for name in MODELS if name not in ("normalised rewards", "heads and decoder")]
UPDATES = [
    *(("world model", name) for name in MODELS),
    *(("policy", name) for name in MODELS),
    *(("TD-MPC2", name) for name in BINNED),
]


def make_stepper(kind, name, device, **options):
    torch.manual_seed(0)
    if kind == "world model":
        model = make_model(name, device)
        return WorldModelOptimizationStepper(PWMWorldModelLoss(model), iterations=10, final_lr=1e-5, **options)
    if kind == "policy":
        loss = make_policy_loss(make_model(name, device), behavior_coef=0.1)
        return PWMOptimizationStepper(loss, iterations=10, critic_iterations=2, **options)
    return TDMPC2OptimizationStepper(TDMPC2Loss(make_tdmpc2(name, device)), iterations=10, **options)


def state_of(stepper):
    """Weights, statistics, moments and steps of the optimisers, without the schedules' places."""
    optimizers = {name: part for name, part in stepper.state_dict().items() if name.endswith("optimizer")}
    moments = {name: part["state"] for name, part in optimizers.items()}
    return copy.deepcopy({"loss": stepper.loss_module.state_dict(), "moments": moments})


@pytest.mark.parametrize(("kind", "name"), UPDATES)
def test_an_update_runs_on_a_device_that_refuses_reads(kind, name):
    stepper = make_stepper(kind, name, META, check_interval=1)
    for _ in range(2):
        metrics = stepper.update(sequences(name))
    assert {value.device.type for value in metrics.values()} == {META}


@pytest.mark.parametrize(("kind", "name"), UPDATES)
def test_nothing_is_read_between_two_checks(kind, name):
    stepper, batch = make_stepper(kind, name, "cpu", check_interval=100), sequences(name, "cpu")
    stepper.update(batch)  # what a first batch must be is read once
    with HostReads() as reads:
        stepper.update(batch)
        stepper.update(batch)
    assert reads.found == []


@pytest.mark.parametrize(("kind", "name"), [("world model", "termination"), ("policy", "tasks"), ("TD-MPC2", "all")])
def test_numbers_do_not_depend_on_how_often_they_are_looked_at(kind, name):
    batch, states = sequences(name, "cpu"), []
    for interval in (1, 3, 100):
        stepper = make_stepper(kind, name, "cpu", check_interval=interval)
        for _ in range(5):
            stepper.update(batch)
        stepper.check()
        states.append(state_of(stepper))
    assert_same(states[1], states[0])
    assert_same(states[2], states[0])


@pytest.mark.parametrize(
    ("kind", "name"), [("world model", "normalised rewards"), ("policy", "tasks"), ("TD-MPC2", "all")]
)
def test_a_bad_update_and_all_after_it_leave_no_trace_until_it_is_named(kind, name):
    good = sequences(name, "cpu", batch=6)
    bad = good.clone()
    bad["observation"][2] = torch.nan
    stepper = make_stepper(kind, name, "cpu", check_interval=4)
    stepper.update(good)
    before = state_of(stepper)
    stepper.update(bad)
    assert_same(state_of(stepper), before)
    stepper.update(good)
    assert_same(state_of(stepper), before)
    with pytest.raises(FloatingPointError, match=r"Update 2 of .*non-finite observation.* in 1 of 6 rows"):
        stepper.update(good)
    assert_same(state_of(stepper), before)
    # Who goes on after the error goes on from there.
    stepper.update(good)
    stepper.check()
    assert any(not torch.equal(value, before["loss"][name]) for name, value in state_of(stepper)["loss"].items())


def test_a_check_at_once_names_what_is_pending():
    stepper, bad = make_stepper("policy", "bins", "cpu", check_interval=50), sequences("bins", "cpu")
    bad["observation"][0] = torch.inf
    stepper.update(bad)
    with pytest.raises(FloatingPointError, match=r"Update 1 of the actor"):
        stepper.check()
    stepper.check()


def test_updates_that_are_skipped_are_counted_on_the_device():
    stepper = make_stepper("world model", "scalar head", "cpu", skip_non_finite=True, check_interval=100)
    good, bad = sequences("scalar head", "cpu"), sequences("scalar head", "cpu")
    bad["next", "reward"][1] = torch.nan
    with HostReads() as reads:
        for batch in (good, bad, bad, good):
            stepper.gate.admits("model", {"loss": batch["next", "reward"].sum()})
    assert reads.found == [] and stepper.skipped == 2


@pytest.mark.parametrize("rate", [0.1, 3e-4])
def test_gated_steps_are_adams(rate):
    def train(optimizer, weight, step):
        for factor in (1.0, -2.0, 0.5):
            weight.grad = torch.full((3,), factor)
            step(optimizer)
        return weight.detach()

    plain, gated = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    expected = train(torch.optim.Adam([plain], rate, fused=True), plain, lambda optimizer: optimizer.step())
    found = train(GatedAdam([gated], rate, clip=9.0), gated, lambda optimizer: optimizer.step_if(torch.tensor(True)))
    assert torch.equal(found, expected)


def test_files_of_optimizers_hold_plain_rates_and_are_read_back():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = GatedAdam([weight], 0.5, clip=1.0, final_lr=0.1, iterations=4)
    weight.grad = torch.ones(3)
    optimizer.step_if(torch.tensor(True))
    optimizer.anneal()
    state, schedule = optimizer.state_dict(), optimizer.schedule_state()
    assert state["param_groups"][0]["lr"] == schedule["_last_lr"][0] == pytest.approx(0.4)
    other = GatedAdam([torch.nn.Parameter(torch.ones(3))], 0.5, clip=1.0, final_lr=0.1, iterations=4)
    other.load_state_dict(state)
    other.load_schedule(schedule)
    other.anneal()
    assert other.rate.item() == pytest.approx(0.3)
