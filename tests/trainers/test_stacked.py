"""Policies of many tasks in one program: each has the numbers of its single training, whatever the others do."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from tests.devices.reads import HostReads
from tests.trainers.tiny import assert_same
from torchrl_pwm import DynamicsEnsemble, PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble
from torchrl_pwm.trainers import PWMOptimizationStepper
from torchrl_pwm.trainers.stacked import StackedPWMUpdate

TASKS, BATCH, STEPS = (0, 3, 4), 16, 20


def make_model(**options):
    torch.manual_seed(1)
    sizes = {"latent_dim": 16, "encoder_units": (16,), "units": (16, 16), "num_bins": 11}
    model = PWMWorldModel(9, 3, **sizes, num_tasks=5, task_dim=4, action_dims=(3, 2, 1, 2, 3), **options)
    for param in model.parameters():  # the last reward weights begin at zero
        torch.nn.init.normal_(param, std=0.3)
    return model.requires_grad_(False)


def make_stepper(model, task, *, options=None, value=None, **settings):
    torch.manual_seed(100 + task)
    critics = make_value_ensemble(16, units=(16, 16), num_nets=2)
    loss = PWMLoss(make_pwm_actor(16, 3, units=(16, 16)), critics, model, horizon=3, **(options or {}))
    if value:
        loss.make_value_estimator(value, gamma=0.9)
    return PWMOptimizationStepper(loss, **{"iterations": 30, "critic_iterations": 2, **settings})


def starts(task, update, size=BATCH):
    draws = torch.Generator().manual_seed(1000 * task + update)
    entries = {"observation": torch.randn(size, 9, generator=draws), "task": torch.full((size,), task)}
    return TensorDict({**entries, "action": torch.rand(size, 3, generator=draws) * 2 - 1}, [size])


def noise(task, update, size=BATCH):
    return torch.randn(3, size, 3, generator=torch.Generator().manual_seed(7000 * task + update))


def train_single(stepper, task, steps=STEPS):
    return torch.stack([stepper.update(starts(task, step), noise(task, step)) for step in range(steps)])


def stacked_inputs(tasks, step):
    return torch.stack([starts(task, step) for task in tasks]), torch.stack([noise(task, step) for task in tasks], 1)


def train_together(steppers, tasks=TASKS, steps=STEPS):
    together = StackedPWMUpdate(steppers)
    return torch.stack([together.update(*stacked_inputs(tasks, step)) for step in range(steps)], 1), together


def assert_close(found, expected):
    """Numbers of nested states within 1e-5."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    elif isinstance(expected, (dict, list, tuple)):
        pairs = zip(found, expected, strict=True) if not isinstance(expected, dict) else None
        for one, other in pairs or ((found[key], value) for key, value in expected.items()):
            assert_close(one, other)
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-5)
    else:
        assert found == expected


VARIANTS = {
    "published": {},
    "behaviour, masks": {"options": {"behavior_coef": 3.0, "mask_actions": True}},
    "TD(0), raw": {"value": "TD0", "options": {"reward_space": "raw", "bootstrap": "reference"}},
    "attached, sums, no scale": {
        "options": {"detach_latent": False, "normalize_returns": False, "reduction": "sum"},
        "actor_lr": 1e-4,
    },
}


@pytest.mark.parametrize("variant", [*VARIANTS, "termination", "disagreement"])
def test_each_task_has_the_numbers_of_its_single_training(variant):
    model, settings = make_model(termination=variant == "termination"), dict(VARIANTS.get(variant, {}))
    if variant == "disagreement":
        settings["options"] = {"disagreement": DynamicsEnsemble(model), "disagreement_coef": 0.5}
    singles = [make_stepper(model, task, **settings) for task in TASKS]
    expected = [train_single(stepper, task) for stepper, task in zip(singles, TASKS)]
    steppers = [make_stepper(model, task, **settings) for task in TASKS]
    metrics, _ = train_together(steppers)
    for found, single, stepper, alone in zip(metrics, expected, steppers, singles):
        assert_close(found.to_dict(), {key: value.float() for key, value in single.items()})
        assert_close(dict(stepper.loss_module.state_dict()), dict(alone.loss_module.state_dict()))
        assert_close(stepper.state_dict(), alone.state_dict())


def bad_starts(task, step):
    batch, drawn = stacked_inputs(TASKS, step)
    batch["observation"][task, 2] = torch.nan
    return batch, drawn


def test_a_task_with_a_bad_number_is_named_and_touches_no_other():
    model = make_model()
    steppers, unharmed = ([make_stepper(model, task) for task in TASKS] for _ in range(2))
    together, alone = StackedPWMUpdate(steppers), StackedPWMUpdate(unharmed)
    for step in range(6):
        together.update(*(bad_starts(1, step) if step == 2 else stacked_inputs(TASKS, step)))
        alone.update(*stacked_inputs(TASKS, step))
    errors = together.failures()
    assert list(errors) == [1] and together.failures() == alone.failures() == {}
    message = str(errors[1])
    assert "Update 3 of the actor" in message and "non-finite observation of task [3] in 1 of 16 rows" in message
    assert "No parameter was changed" in message
    for place in (0, 2):
        assert_same(steppers[place].state_dict(), unharmed[place].state_dict())
        assert_same(dict(steppers[place].loss_module.state_dict()), dict(unharmed[place].loss_module.state_dict()))
    before = [make_stepper(model, task) for task in TASKS]
    train_together(before, steps=2)
    assert_same(dict(steppers[1].loss_module.state_dict()), dict(before[1].loss_module.state_dict()))
    for name in ("actor_optimizer", "critic_optimizer"):
        assert_same(steppers[1].state_dict()[name]["state"], before[1].state_dict()[name]["state"])


def test_skipped_updates_are_counted_for_their_task_alone():
    model, settings = make_model(), {"skip_non_finite": True}
    steppers = [make_stepper(model, task, **settings) for task in TASKS]
    single = make_stepper(model, TASKS[1], **settings)
    together = StackedPWMUpdate(steppers)
    for step in range(4):
        batch, drawn = bad_starts(1, step) if step == 1 else stacked_inputs(TASKS, step)
        metrics = together.update(batch, drawn)
        single.update(batch[1], drawn[:, 1])
    assert together.failures() == {} and metrics["skipped"].tolist() == [0.0, 1.0, 0.0]
    assert [stepper.skipped for stepper in steppers] == [0, 1, 0]
    assert_close(steppers[1].state_dict(), single.state_dict())
    assert_close(dict(steppers[1].loss_module.state_dict()), dict(single.loss_module.state_dict()))


def test_released_tasks_go_on_alone_with_the_same_numbers():
    model = make_model()
    single, together = (make_stepper(model, TASKS[0]) for _ in range(2))
    train_single(single, TASKS[0], 4)
    others = [make_stepper(model, task) for task in TASKS[1:]]
    _, update = train_together([together, *others], steps=2)
    update.release()
    for step in (2, 3):
        together.update(starts(TASKS[0], step), noise(TASKS[0], step))
    assert_close(together.state_dict(), single.state_dict())
    states = [value for state in together.actor_optimizer.state.values() for value in state.values()]
    for tensor in (*together.actor_params, *together.critic_params, *states):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actor_clip": 2.0}, "need the same actor_clip"),
        ({"betas": (0.9, 0.99)}, "need one setting of Adam"),
        ({"options": {"behavior_coef": 1.0}}, "need the same behavior_coef: 1.0 and 0.0"),
        ({"value": "TD0"}, "need the same value_targets"),
    ],
)
def test_tasks_that_differ_in_more_than_their_rates_are_refused(changes, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        StackedPWMUpdate([make_stepper(model, 0), make_stepper(model, 1, **changes)])


def test_each_task_has_a_learning_rate_of_its_own():
    model = make_model()
    rates = {0: 1e-4, 3: 5e-4, 4: 1e-3}
    singles = [make_stepper(model, task, actor_lr=rates[task]) for task in TASKS]
    for stepper, task in zip(singles, TASKS):
        train_single(stepper, task, 3)
    steppers = [make_stepper(model, task, actor_lr=rates[task]) for task in TASKS]
    train_together(steppers, steps=3)
    for stepper, single in zip(steppers, singles):
        assert_close(stepper.state_dict(), single.state_dict())


def test_an_update_reads_no_number_on_the_host():
    model = make_model()
    together = StackedPWMUpdate([make_stepper(model, task) for task in TASKS])
    together.update(*stacked_inputs(TASKS, 0))  # the numbers of a first batch are checked once
    inputs = stacked_inputs(TASKS, 1)
    reads = HostReads()
    with reads:
        together.update(*inputs)
    assert reads.found == []
