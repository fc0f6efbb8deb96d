"""A number that is not finite stops a training before it reaches a parameter."""

from __future__ import annotations

import pytest
import torch
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement

from tests.trainers import tiny
from torchrl_pwm import PWMWorldModelLoss
from torchrl_pwm.trainers import PWMOptimizationStepper, WorldModelOptimizationStepper


def snapshot(*modules):
    return [{key: value.clone() for key, value in module.state_dict().items()} for module in modules]


def make_stepper(kind, **options):
    torch.manual_seed(1)
    if kind == "model":
        loss = PWMWorldModelLoss(tiny.make_model())
        stepper = WorldModelOptimizationStepper(loss, iterations=10, **options)
        return loss, stepper, [loss]
    loss = tiny.make_policy_loss()
    stepper = PWMOptimizationStepper(loss, iterations=10, critic_iterations=1, **options)
    return loss, stepper, [loss, loss.world_model]


def bad_batch(value, key="observation"):
    batch = tiny.sequences(6)
    batch["task"] = torch.arange(6)[:, None].expand(6, 4).clone()
    batch[key][3] = value
    return batch


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@pytest.mark.parametrize(
    ("kind", "key", "named"),
    [
        ("model", "observation", "observation"),
        ("model", "action", "action"),
        ("model", ("next", "reward"), "reward"),
        ("model", ("next", "observation"), "observation"),
        ("policy", "observation", "observation"),
    ],
)
def test_bad_data_stop_the_run_with_update_key_and_task_named(kind, key, named, value):
    _, stepper, modules = make_stepper(kind)
    stepper.update(tiny.sequences(6))
    before, optimizers = snapshot(*modules), stepper.state_dict()
    with pytest.raises(FloatingPointError, match=rf"Update 2 of .*non-finite .*{named}.* of task \[3\] in 1 of 6 rows"):
        stepper.update(bad_batch(value, key))
    tiny.assert_same(snapshot(*modules), before)
    tiny.assert_same(stepper.state_dict(), optimizers)


def test_a_trainer_stops_with_the_last_checkpoint_good(tmp_path):
    buffer = ReplayBuffer(storage=LazyTensorStorage(24), sampler=SamplerWithoutReplacement(shuffle=False), batch_size=6)
    buffer.extend(torch.cat([tiny.sequences(6), tiny.sequences(6), tiny.sequences(6), bad_batch(float("nan"))]))
    trainer = tiny.make_trainer("policy", buffer, tmp_path)
    with pytest.raises(FloatingPointError, match="Update 4 of the actor"):
        trainer.train()
    again = tiny.make_trainer("policy", buffer, tmp_path)
    again.resume()
    assert again.iteration == 2
    assert all(value.isfinite().all() for value in again.loss_module.state_dict().values())


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_diverged_networks_are_not_blamed_on_the_data(kind):
    _, stepper, modules = make_stepper(kind)
    with torch.no_grad():
        next(iter(modules[0].parameters())).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="every entry of the batch is finite"):
        stepper.update(tiny.sequences(6))


def test_entries_without_further_axes_are_looked_at_too():
    _, stepper, _ = make_stepper("policy")
    batch = bad_batch(float("nan"))[:, 0].set("weight", torch.ones(6))
    with pytest.raises(FloatingPointError, match="non-finite observation of task"):
        stepper.update(batch)


def test_skipping_is_counted_and_leaves_no_trace():
    loss, stepper, modules = make_stepper("policy", skip_non_finite=True)
    first = stepper.update(tiny.sequences(6))
    before = snapshot(*modules)
    skipped = stepper.update(bad_batch(float("nan")))
    tiny.assert_same(snapshot(*modules), before)
    assert stepper.skipped == 1 and skipped["skipped"].item() == 1
    # The metrics keep their names; what was not computed is no number.
    assert set(skipped.keys()) == set(first.keys()) and skipped["loss_value"].isnan()

    last = stepper.update(tiny.sequences(6))
    assert stepper.skipped == 1
    assert all(value.isfinite().all() for value in last.values())
    assert last["actor_lr"] < skipped["actor_lr"] < first["actor_lr"]
    assert not torch.equal(next(iter(loss.parameters())), before[0][next(iter(before[0]))])


@pytest.mark.parametrize("kind", ["policy", "model"])
def test_skips_are_saved(kind):
    _, stepper, _ = make_stepper(kind, skip_non_finite=True)
    stepper.update(bad_batch(float("nan")))
    _, other, _ = make_stepper(kind, skip_non_finite=True)
    other.load_state_dict(stepper.state_dict())
    assert other.skipped == 1


def test_value_targets_that_overflow_stop_the_actor_too():
    loss, stepper, modules = make_stepper("policy")
    loss.normalize_returns = False
    estimate = loss.value_target
    loss.value_target = lambda rollout: estimate(rollout) * float("inf")
    before = snapshot(*modules)
    with pytest.raises(FloatingPointError, match=r"value target .*No parameter was changed"):
        stepper.update(tiny.sequences(6))
    tiny.assert_same(snapshot(*modules), before)


def test_a_critic_that_overflows_alone_is_told_as_it_is():
    loss, stepper, _ = make_stepper("policy")
    loss.value_loss = lambda minibatch: next(iter(loss.value_network_params.values(True, True))).sum() * float("inf")
    with pytest.raises(FloatingPointError, match=r"of the critic.*Earlier steps of this update were taken"):
        stepper.update(tiny.sequences(6))
