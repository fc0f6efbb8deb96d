"""The optimisation stepper of TD-MPC2: what moves, what is saved, and what stops it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.record.loggers import CSVLogger

from tests.modules.tdmpc2 import TASKS, make_model
from tests.objectives.test_tdmpc2 import flags, sequences
from tests.trainers.tiny import Interrupted, assert_same, interrupt_at, make_buffer, metrics_of, write_store
from tests.trainers.tiny import make_model as make_world_model
from torchrl_pwm import TDMPC2Loss, TDMPC2Model, TDMPC2Trainer
from torchrl_pwm.trainers import TDMPC2OptimizationStepper, has_checkpoint


def make_stepper(**options: Any) -> TDMPC2OptimizationStepper:
    torch.manual_seed(1)
    return TDMPC2OptimizationStepper(TDMPC2Loss(make_model(TASKS)), **options)


def snapshot(stepper: TDMPC2OptimizationStepper) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in stepper.loss_module.state_dict().items()}


def test_an_update_moves_every_part() -> None:
    stepper = make_stepper()
    before = snapshot(stepper)
    metrics = stepper.update(sequences(TASKS))
    after = snapshot(stepper)
    parameters = {f"model.{name}" for name, _ in stepper.loss_module.model.named_parameters()}
    assert all(not torch.equal(after[key], before[key]) for key in parameters)
    assert {"loss_policy", "loss_value", "model_grad_norm", "policy_grad_norm", "model_lr"} <= set(metrics.keys())
    assert not any(value.requires_grad for value in metrics.values())


def test_the_encoder_learns_slower_and_rates_fall() -> None:
    stepper = make_stepper(lr=1e-3, final_lr=1e-4, iterations=10)
    rates = [[g["lr"] for g in opt.param_groups] for opt in (stepper.model_optimizer, stepper.policy_optimizer)]
    assert rates == [[pytest.approx(3e-4), pytest.approx(1e-3)], [pytest.approx(1e-3)]]
    stepper.update(sequences(TASKS))
    assert stepper.schedulers[1].get_last_lr() == [pytest.approx(1e-3 - 0.9e-4)]
    count = sum(len(group["params"]) for group in stepper.model_optimizer.param_groups)
    model = stepper.loss_module.model
    assert count == sum(p.requires_grad for p in model.parameters()) - len(list(model.policy.parameters()))


def test_the_policy_learns_from_the_new_q_functions(monkeypatch) -> None:
    stepper = make_stepper()
    loss, order = stepper.loss_module, []
    for name in ("model_losses", "policy_loss"):
        original = getattr(loss, name)
        monkeypatch.setattr(loss, name, lambda *a, o=original, n=name: order.append((n, weights())) or o(*a))

    def weights() -> float:
        return float(loss.model.q.params[0].detach().sum())

    before = weights()
    stepper.update(sequences(TASKS))
    assert [name for name, _ in order] == ["model_losses", "policy_loss"]
    assert order[0][1] == before != order[1][1] == weights()


def test_a_restored_stepper_goes_on_with_the_same_numbers() -> None:
    stepper, other = make_stepper(final_lr=1e-5), make_stepper(final_lr=1e-5)
    data = [sequences(TASKS), sequences(TASKS)]
    stepper.update(data[0])
    other.loss_module.load_state_dict(stepper.loss_module.state_dict())
    other.load_state_dict(copy.deepcopy(stepper.state_dict()))
    for one in (stepper, other):
        torch.manual_seed(5)
        one.update(data[1])
    assert_same(snapshot(other), snapshot(stepper))
    assert_same(other.state_dict(), stepper.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["observation", "action", ("next", "reward"), ("next", "observation")])
def test_bad_data_stop_the_run_before_anything_changes(key, value: float) -> None:
    stepper = make_stepper()
    stepper.update(sequences(TASKS))
    before, optimizers = snapshot(stepper), stepper.state_dict()
    batch = sequences(TASKS)
    batch[key][4] = value
    name = key if isinstance(key, str) else key[1]
    with pytest.raises(FloatingPointError, match=rf"Update 2 of the model.*non-finite .*{name}.* of task \[1\]"):
        stepper.update(batch)
    assert_same(snapshot(stepper), before)
    assert_same(stepper.state_dict(), optimizers)


def test_diverged_networks_are_not_blamed_on_the_data() -> None:
    stepper = make_stepper()
    with torch.no_grad():
        stepper.loss_module.model.q.params[0].fill_(torch.nan)
    before = snapshot(stepper)
    with pytest.raises(FloatingPointError, match=r"the model.*every entry of the batch is finite.*No parameter was"):
        stepper.update(sequences(TASKS))
    for key, value in snapshot(stepper).items():
        # a look-up rescales long embeddings
        assert "_task_emb" in key or torch.equal(value, before[key]) or value.isnan().all(), key


def test_a_policy_that_diverges_leaves_the_range_of_values_as_it_was() -> None:
    stepper = make_stepper()
    loss = stepper.loss_module
    original = loss.policy_loss

    def overflow(*args):
        loss.model.scale.value.fill_(torch.nan)
        out = original(*args)
        return out.set("loss_policy", out["loss_policy"] * torch.inf)

    loss.policy_loss = overflow
    policy = [p.clone() for p in stepper.policy_params]
    with pytest.raises(FloatingPointError, match=r"of the policy.*Earlier steps of this update were taken"):
        stepper.update(sequences(TASKS))
    assert loss.model.scale.value == 1
    assert all(torch.equal(p, old) for p, old in zip(stepper.policy_params, policy, strict=True))


def test_a_bad_target_speed_is_refused() -> None:
    with pytest.raises(ValueError, match="tau"):
        make_stepper(tau=0.0)


def test_a_trainer_takes_it() -> None:
    data = torch.cat([sequences(TASKS, terminated=flags((0, 1))) for _ in range(4)])
    buffer = ReplayBuffer(storage=LazyTensorStorage(24), sampler=SamplerWithoutReplacement(), batch_size=6)
    buffer.extend(data)
    stepper = make_stepper(lr=3e-3)
    before = snapshot(stepper)
    trainer = TDMPC2Trainer(stepper.loss_module, buffer, iterations=3, optimization_stepper=stepper, progress_bar=False)
    trainer.train()
    assert trainer.iteration == 3
    assert not torch.equal(snapshot(stepper)["model.policy.0.weight"], before["model.policy.0.weight"])


def run(root: Path, folder: Path, buffer: str, place: str | None = None, count: int = 0) -> TDMPC2Trainer:
    """Trains on offline data of two tasks, from the folder's checkpoint if there is one; returns the trainer."""
    replay = make_buffer(buffer, root)
    torch.manual_seed(3)
    trainer = TDMPC2Trainer(
        TDMPC2Loss(TDMPC2Model(make_world_model())),
        replay,
        iterations=7,
        logger=CSVLogger("log", log_dir=str(folder)),
        log_interval=1,
        save_folder=folder / "checkpoint",
        save_interval=2,
        progress_bar=False,
    )
    trainer.resume(required=False)
    if place is not None:
        interrupt_at(trainer, place, count)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("place", "count"), [("sample", 1), ("sample", 6), ("save", 3)])
@pytest.mark.parametrize("buffer", ["store", "store with prefetch", "own generator"])
def test_an_interrupted_training_ends_with_the_same_numbers(buffer, place, count, tmp_path) -> None:
    root = write_store(tmp_path / "store")
    whole = run(root, tmp_path / "whole", buffer)
    with pytest.raises(Interrupted):
        run(root, tmp_path / "parts", buffer, place, count)
    assert has_checkpoint(tmp_path / "parts" / "checkpoint") == (count > 1)
    parts = run(root, tmp_path / "parts", buffer)
    assert_same(parts.state_dict(), whole.state_dict())
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole") != {}


def test_training_lowers_the_losses() -> None:
    stepper, batch = make_stepper(lr=3e-3), sequences(TASKS)
    found = [stepper.update(batch) for _ in range(60)]
    for key in ("loss_consistency", "loss_reward", "loss_value"):
        assert found[-1][key] < 0.9 * found[0][key], key
