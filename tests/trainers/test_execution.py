"""However an update is run, eagerly, compiled, captured or in bfloat16, it is the same update."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

import torchrl_pwm._utils.execution as execution
from tests.devices.parts import META, make_model, make_policy_loss, make_tdmpc2, sequences
from tests.devices.recording import RecordedModule
from tests.trainers import test_shac, test_stacked
from tests.trainers.test_pure_updates import make_stepper, state_of
from tests.trainers.tiny import assert_same
from torchrl_pwm import PWMWorldModelLoss, TDMPC2Loss
from torchrl_pwm.trainers import PWMOptimizationStepper, TDMPC2OptimizationStepper, WorldModelOptimizationStepper
from torchrl_pwm.trainers.stacked import StackedPWMUpdate

KINDS = [
    *(("world model", name) for name in ("tasks", "termination", "normalised rewards")),
    *(("policy", name) for name in ("bins", "tasks", "all")),
    *(("TD-MPC2", name) for name in ("scalar head", "all")),
]


@pytest.fixture
def capture(monkeypatch):
    """Lets steppers on a CPU capture their programs, by a stand-in that records and replays operations."""
    monkeypatch.setattr(execution, "CudaGraphModule", RecordedModule)

    def switch_on(stepper):
        stepper.execution.captures, stepper.execution.ready = True, False
        return stepper

    return switch_on


@pytest.fixture
def compiled():
    """Lets steppers compile as on any machine, without code of C++."""
    execution.compiler_obstacle.cache_clear()

    def switch(stepper):
        stepper.execution.backend = "aot_eager"
        return stepper

    yield switch
    torch.compiler.reset()


def train(stepper, batch, updates=6, seed=3):
    torch.manual_seed(seed)
    return torch.stack([stepper.update(batch) for _ in range(updates)])


def replays(stepper):
    return {name: captured.graph.replays for name, captured in stepper.execution._captured.items()}


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_replayed_updates_are_the_eager_ones_with_their_noise_and_their_falling_rates(kind, name, capture):
    batch, eager = sequences(name, "cpu"), make_stepper(kind, name, "cpu")
    captured = capture(make_stepper(kind, name, "cpu"))
    assert_same(dict(train(captured, batch).items()), dict(train(eager, batch).items()))
    assert_same(state_of(captured), state_of(eager))
    assert replays(captured) == {"compute": 7}


def test_policy_noise_of_replays_is_drawn_anew(capture):
    stepper = capture(make_stepper("policy", "bins", "cpu", actor_lr=1e-30, critic_lr=1e-30, final_lr=0.0))
    torch.nn.init.normal_(stepper.loss_module.world_model.reward_network[-1].weight)
    rewards = train(stepper, sequences("bins", "cpu"))["reward_mean"]
    assert len(rewards.unique()) == len(rewards)


def test_of_shac_the_critic_pass_is_captured(capture):
    states = []
    for stepper in (test_shac.make_stepper(), capture(test_shac.make_stepper())):
        torch.manual_seed(5)
        env = test_shac.make_env()
        for _ in range(6):
            stepper.update(test_shac.roll(stepper, env))
        states.append(state_of(stepper))
    assert_same(states[1], states[0])
    assert replays(stepper) == {"critic_pass": 7}


def test_tasks_together_are_captured_as_one_program(capture):
    def run(switch):
        model = test_stacked.make_model()
        steppers = [test_stacked.make_stepper(model, task) for task in test_stacked.TASKS]
        together = switch(StackedPWMUpdate(steppers))
        steps = [together.update(*test_stacked.stacked_inputs(test_stacked.TASKS, step)) for step in range(6)]
        return torch.stack(steps), [state_of(stepper) for stepper in steppers], together

    (eager, expected, _), (captured, states, together) = run(lambda update: update), run(capture)
    assert_same(dict(captured.items()), dict(eager.items()))
    assert_same(states, expected)
    assert together.failures() == {} and replays(together) == {"compute": 7}


def test_a_bad_task_is_left_out_of_a_captured_program_and_named_with_its_update(capture):
    model = test_stacked.make_model()
    together = capture(StackedPWMUpdate([test_stacked.make_stepper(model, task) for task in test_stacked.TASKS]))
    for step in range(4):
        batch, noise = test_stacked.stacked_inputs(test_stacked.TASKS, step)
        batch["observation"][1, 2] = torch.nan if step == 2 else 0.0
        together.update(batch, noise)
    (task, error) = next(iter(together.failures().items()))
    assert task == 1 and "Update 3 of the actor" in str(error) and "non-finite observation of task [3]" in str(error)


def test_a_bad_update_is_named_though_python_did_not_run_it(capture):
    stepper, good = capture(make_stepper("policy", "tasks", "cpu", check_interval=4)), sequences("tasks", "cpu")
    bad = good.clone()
    bad["observation"][2] = torch.nan
    for _ in range(2):
        stepper.update(good)
    before = state_of(stepper)
    stepper.update(bad)
    with pytest.raises(FloatingPointError, match=r"Update 3 of the actor.*non-finite observation of task \[0\]"):
        stepper.update(good)
    assert_same(state_of(stepper), before)


def test_a_batch_of_another_size_is_run_eagerly(capture):
    small, large = sequences("bins", "cpu", batch=3), sequences("bins", "cpu", batch=5)
    eager, captured = make_stepper("policy", "bins", "cpu"), capture(make_stepper("policy", "bins", "cpu"))
    for stepper in (eager, captured):
        torch.manual_seed(0)
        for batch in (large, small, large):
            stepper.update(batch)
    assert_same(state_of(captured), state_of(eager))
    assert replays(captured) == {"compute": 3}


def test_a_stepper_that_is_loaded_goes_on_in_what_it_was_given(capture):
    batch, source = sequences("bins", "cpu"), make_stepper("policy", "bins", "cpu")
    train(source, batch, 3)
    networks, saved = copy.deepcopy(source.loss_module.state_dict()), copy.deepcopy(source.state_dict())
    eager, captured = make_stepper("policy", "bins", "cpu"), capture(make_stepper("policy", "bins", "cpu"))
    train(captured, batch, 2)
    for stepper in (eager, captured):
        stepper.loss_module.load_state_dict(networks)
        stepper.load_state_dict(copy.deepcopy(saved))
    assert_same(dict(train(captured, batch).items()), dict(train(eager, batch).items()))


@pytest.mark.parametrize(
    ("kind", "name"), [("world model", "normalised rewards"), ("policy", "all"), ("TD-MPC2", "all")]
)
def test_a_warm_up_changes_nothing(kind, name, capture):
    stepper, batch = capture(make_stepper(kind, name, "cpu")), sequences(name, "cpu")
    networks, generator = copy.deepcopy(stepper.loss_module.state_dict()), torch.get_rng_state()
    stepper.warmup(batch)
    assert_same(stepper.loss_module.state_dict(), networks)
    assert torch.equal(torch.get_rng_state(), generator)
    for moments in state_of(stepper)["moments"].values():
        assert all(value.count_nonzero() == 0 for state in moments.values() for value in state.values())
    assert stepper.number == 1 and stepper.skipped == 0
    stepper.check()


@pytest.mark.parametrize(("kind", "name"), [("world model", "all"), ("policy", "all"), ("TD-MPC2", "all")])
def test_compiled_updates_agree_and_are_compiled_once(kind, name, compiled):
    batch, options = sequences(name, "cpu"), {"compile_train_step": True, "warmup_steps": 1}
    eager = train(make_stepper(kind, name, "cpu"), batch, 3)
    stepper = compiled(make_stepper(kind, name, "cpu", **options))
    stepper.warmup(batch)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = train(stepper, batch, 3)
    for key, value in eager.items():
        torch.testing.assert_close(found[key], value, rtol=2e-3, atol=1e-4, msg=key)


def test_compiled_windows_of_a_simulator_agree(compiled):
    found = []
    for options in ({}, {"compile_train_step": True}):
        stepper, env = compiled(test_shac.make_stepper(**options)), test_shac.make_env()
        torch.manual_seed(5)
        found.append(torch.stack([stepper.update(test_shac.roll(stepper, env)) for _ in range(3)]))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-5, msg=key)


def test_without_a_compiler_updates_run_eagerly_with_one_sentence(monkeypatch):
    def refuse(function, **options):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", refuse)
    execution.compiler_obstacle.cache_clear()
    batch, stepper = sequences("bins", "cpu"), make_stepper("policy", "bins", "cpu", compile_train_step=True)
    with pytest.warns(UserWarning, match=r"run eagerly.*No working C\+\+ compiler found") as found:
        metrics = train(stepper, batch)
    execution.compiler_obstacle.cache_clear()
    assert len(found) == 1
    assert_same(dict(metrics.items()), dict(train(make_stepper("policy", "bins", "cpu"), batch).items()))


def test_a_program_that_cannot_be_captured_runs_eagerly_unless_it_was_asked_for(monkeypatch):
    class Broken(RecordedModule):
        def __call__(self, *inputs):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(execution, "CudaGraphModule", Broken)
    batch, stepper = sequences("bins", "cpu"), make_stepper("policy", "bins", "cpu")
    stepper.execution.captures, stepper.execution.ready = True, False
    with pytest.warns(UserWarning, match="not permitted when stream is capturing"):
        metrics = train(stepper, batch)
    assert_same(dict(metrics.items()), dict(train(make_stepper("policy", "bins", "cpu"), batch).items()))
    asked = make_stepper("policy", "bins", "cpu")
    asked.execution.captures, asked.execution.ready, asked.execution.required = True, False, (False, True)
    with pytest.raises(RuntimeError, match="not permitted"):
        asked.update(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cudagraph": True}, "cudagraph=True needs networks on a CUDA device, found them on cpu"),
        ({"precision": "tf32"}, "NVIDIA"),
        ({"precision": "fp8"}, "precision must be one of fp32, tf32, bf16, auto, found 'fp8'"),
        ({"compile_mode": "fast"}, "compile_mode must be one of"),
        ({"warmup_steps": 0}, "warmup_steps"),
    ],
)
def test_what_a_device_has_not_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_stepper("policy", "bins", "cpu", **options)


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_in_bfloat16_products_alone_are_narrow(kind, name):
    batch = sequences(name, "cpu", batch=32)
    exact, narrow = make_stepper(kind, name, "cpu"), make_stepper(kind, name, "cpu", precision="bf16")
    expected, found = train(exact, batch, 1), train(narrow, batch, 1)
    assert {value.dtype for value in found.values()} == {torch.float32}
    keys = [key for key in expected.keys() if key.startswith("loss_")]  # noqa: SIM118
    errors = torch.stack([(found[key] - expected[key]).abs() / (expected[key].abs() + 0.01) for key in keys])
    assert 0.0 < errors.max() < 0.1
    assert_weights_are_wide(narrow)


def assert_weights_are_wide(stepper):
    state = state_of(stepper)
    tensors = [
        *state["loss"].values(),
        *(v for part in state["moments"].values() for s in part.values() for v in s.values()),
    ]
    assert {value.dtype for value in tensors if value.is_floating_point()} == {torch.float32}


def test_tasks_together_run_in_bfloat16_as_each_alone():
    model = test_stacked.make_model()
    options = {"precision": "bf16"}
    singles = [
        test_stacked.train_single(test_stacked.make_stepper(model, task, **options), task, steps=2)
        for task in test_stacked.TASKS
    ]
    together, _ = test_stacked.train_together(
        [test_stacked.make_stepper(model, task, **options) for task in test_stacked.TASKS], steps=2
    )
    torch.testing.assert_close(
        together["loss_actor"][:, 0], torch.stack(singles)["loss_actor"][:, 0], rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("kind", ["world model", "policy", "TD-MPC2"])
def test_options_of_the_execution_are_those_of_every_stepper(kind):
    model = make_model("bins", META)
    stepper = {
        "world model": lambda **o: WorldModelOptimizationStepper(PWMWorldModelLoss(model), iterations=3, **o),
        "policy": lambda **o: PWMOptimizationStepper(make_policy_loss(model), **o),
        "TD-MPC2": lambda **o: TDMPC2OptimizationStepper(TDMPC2Loss(make_tdmpc2("bins")), **o),
    }[kind](precision="bf16", compile_train_step=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = stepper.update(sequences("bins"))
    assert {value.device.type for value in metrics.values()} == {META}


def test_the_precision_that_is_chosen_is_one_of_the_machine():
    assert execution.native_precision(torch.device("cpu")) in ("fp32", "bf16")
    assert make_stepper("policy", "bins", "cpu", precision="auto").execution.precision in ("fp32", "bf16")
