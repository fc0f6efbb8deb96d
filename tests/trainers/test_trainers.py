"""Training loops: logs, evaluations, checkpoints and refusals."""

from __future__ import annotations

import csv

import pytest
import torch
from torchrl.data import LazyTensorStorage, ReplayBuffer

from tests.trainers import tiny
from torchrl_pwm.trainers import PWMOptimizationStepper, load_checkpoint

METRICS = {
    "model": {"loss_consistency", "loss_reward", "reward_error", "latent_error_last", "model_grad_norm", "model_lr"},
    "policy": {
        "loss_actor",
        "loss_value",
        "actor_grad_norm",
        "critic_grad_norm",
        "reward_mean",
        "return_scale",
        "actor_lr",
        "skipped",
    },
}


@pytest.fixture
def buffer():
    return tiny.make_buffer("random", None)


def logged(folder):
    """Steps and values of every metric."""
    found = {}
    for file in folder.glob("log/scalars/*.csv"):
        with open(file, newline="") as stream:
            found[file.stem] = [(int(step), float(value)) for step, value in csv.reader(stream)]
    return found


def parameters(trainer):
    return {key: value.clone() for key, value in trainer.loss_module.state_dict().items()}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_metrics_are_logged_at_the_interval_and_at_the_end(kind, buffer, tmp_path):
    tiny.make_trainer(kind, buffer, tmp_path, log_interval=3).train()
    found = logged(tmp_path)
    assert set(found) == METRICS[kind]
    for rows in found.values():
        assert [step for step, _ in rows] == [3, 6, 7]
        assert all(torch.tensor(value).isfinite() for _, value in rows)


def test_after_a_training_no_log_is_held_open(buffer, tmp_path):
    trainer = tiny.make_trainer("policy", buffer, tmp_path, log_interval=3)
    trainer.train()
    assert trainer._log.logger.experiment.files == {}
    trainer.iterations += 2
    trainer.train()
    assert [step for step, _ in logged(tmp_path)["loss_actor"]] == [3, 6, 7, 9]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_evaluation_runs_at_its_interval_and_at_the_end(kind, buffer, tmp_path):
    seen = []

    def evaluate():
        seen.append(trainer.iteration)
        return {"real_return": 10.0 * len(seen), "real_success": 0.5}

    trainer = tiny.make_trainer(kind, buffer, tmp_path, evaluate=evaluate, eval_interval=2)
    trainer.train()
    assert seen == [2, 4, 6, 7]
    assert logged(tmp_path)["real_return"] == [(2, 10.0), (4, 20.0), (6, 30.0), (7, 40.0)]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_without_logger_folder_or_bar_training_leaves_nothing_behind(kind, buffer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_trainer(kind, buffer).train()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_progress_bar_shows_updates_and_the_numbers_that_matter(kind, buffer, tmp_path, capsys):
    trainer = tiny.make_trainer(kind, buffer, tmp_path, progress_bar=True, evaluate=lambda: {"real_return": 12.5})
    trainer.train()
    shown = capsys.readouterr().err
    assert f"{tiny.ITERATIONS}/{tiny.ITERATIONS}" in shown
    for name in (*trainer.progress_keys, "real_return: 12.5"):
        assert name in shown
    assert "grad_norm" not in shown


def test_the_progress_bar_of_a_resumed_run_begins_where_it_was(buffer, tmp_path, capsys):
    trainer = tiny.make_trainer("model", buffer, tmp_path)
    tiny.interrupt_at(trainer, "update", 6)
    with pytest.raises(tiny.Interrupted):
        trainer.train()
    again = tiny.make_trainer("model", tiny.make_buffer("random", None), tmp_path, progress_bar=True)
    again.resume()
    capsys.readouterr()
    again.train()
    shown = capsys.readouterr().err
    assert "4/7" in shown and "7/7" in shown and "8/7" not in shown


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_checkpoint_holds_what_decides_the_next_number(kind, buffer, tmp_path):
    trainer = tiny.make_trainer(kind, buffer, tmp_path)
    trainer.train()
    state = load_checkpoint(tmp_path / "checkpoint")
    assert set(state) == {"iteration", "loss_module", "optimization_stepper", "replay_sampling", "generators"}
    assert state["iteration"] == tiny.ITERATIONS
    assert torch.equal(state["generators"]["cpu"], torch.get_rng_state())
    tiny.assert_same(state["loss_module"], dict(trainer.loss_module.state_dict()))
    stepper = state["optimization_stepper"]
    if kind == "policy":
        assert {"return_moments.mean", "return_moments.var", "return_moments.count"} <= set(state["loss_module"])
        assert {"actor_optimizer", "critic_optimizer", "schedulers", "skipped"} == set(stepper)
        # The frozen model is the business of its own file.
        assert not any("dynamics" in key for key in state["loss_module"])
    else:
        assert {"optimizer", "scheduler", "skipped"} == set(stepper)
        assert any("dynamics" in key for key in state["loss_module"])


@pytest.mark.parametrize(("interval", "expected"), [(3, [3, 6, 7]), (7, [7]), (100, [7]), (1, [1, 2, 3, 4, 5, 6, 7])])
def test_checkpoints_are_saved_at_their_interval_and_at_the_end(interval, expected, buffer, tmp_path, monkeypatch):
    trainer = tiny.make_trainer("model", buffer, tmp_path, save_interval=interval)
    saved = []
    monkeypatch.setattr("torchrl_pwm.trainers.trainer.save_checkpoint", lambda *_, step: saved.append(step))
    trainer.train()
    assert saved == expected


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_two_trainers_of_a_process_do_not_share_anything(kind, tmp_path):
    alone = tiny.make_trainer(kind, tiny.make_buffer("own generator", None), tmp_path / "alone")
    alone.train()

    first = tiny.make_trainer(kind, tiny.make_buffer("own generator", None), tmp_path / "first")
    tiny.interrupt_at(first, "update", 4)
    with pytest.raises(tiny.Interrupted):
        first.train()
    second = tiny.make_trainer(kind, tiny.make_buffer("own generator", None), tmp_path / "second")
    assert (second.iteration, second.latest) == (0, {})
    assert first.iteration == 4 and first.latest
    torch.manual_seed(3)
    second = tiny.make_trainer(kind, tiny.make_buffer("own generator", None), tmp_path / "second")
    second.train()
    tiny.assert_same(second.state_dict(), alone.state_dict())
    assert logged(tmp_path / "second") == logged(tmp_path / "alone")
    assert first.iteration == 4


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_training_changes_what_it_should(kind, buffer, device):
    trainer = tiny.make_trainer(kind, buffer, device=device)
    before = parameters(trainer)
    model = {} if kind == "model" else {k: v.clone() for k, v in trainer.loss_module.world_model.state_dict().items()}
    trainer.train()
    unchanged = {key for key, value in trainer.loss_module.state_dict().items() if torch.equal(value, before[key])}
    settings = {"consistency_coef", "reward_coef", "_value_estimator.gamma", "_value_estimator.lmbda"}
    assert unchanged == settings & set(before)
    if kind == "policy":
        tiny.assert_same(dict(trainer.loss_module.world_model.state_dict()), model)


def test_batches_are_moved_to_the_device(buffer):
    trainer = tiny.make_trainer("policy", buffer, device="meta")
    assert trainer.sample().device.type == "meta"


def test_start_states_and_sequences_serve_alike():
    sequences = tiny.sequences()
    states = []
    for data in (sequences, sequences[:, 0]):
        buffer = ReplayBuffer(storage=LazyTensorStorage(24), batch_size=6, generator=torch.Generator().manual_seed(0))
        buffer.extend(data)
        trainer = tiny.make_trainer("policy", buffer)
        trainer.train()
        states.append(parameters(trainer))
    tiny.assert_same(*states)


def test_a_checkpoint_without_a_part_of_the_trainer_is_refused_and_changes_nothing(buffer, tmp_path):
    tiny.make_trainer("policy", buffer, tmp_path).train()
    other = tiny.make_trainer("policy", tiny.make_buffer("random", None), tmp_path)
    other.components["best_policy"] = other.loss_module
    with pytest.raises(ValueError, match="another kind of trainer: it has no best_policy"):
        other.resume()
    assert other.iteration == 0


def test_the_delayed_value_network_of_pwm_moves_once_an_update_by_its_share():
    loss = tiny.make_policy_loss(delay_value=True)
    stepper = PWMOptimizationStepper(loss, iterations=3, target_tau=0.25)
    targets = loss.target_value_network_params
    with torch.no_grad():
        for weight in loss.value_network_params.parameters():
            weight.add_(0.1)
    before = [weight.clone() for weight in targets.values(True, True)]
    stepper.update(tiny.sequences())
    for target, old, value in zip(targets.values(True, True), before, loss.value_network_params.values(True, True)):
        torch.testing.assert_close(target, 0.25 * value.detach() + 0.75 * old)
