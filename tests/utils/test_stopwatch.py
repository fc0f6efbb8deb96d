"""Training time outside evaluations, and across interruptions."""

from __future__ import annotations

import pytest

from tests.trainers import tiny
from torchrl_pwm._utils import stopwatch as module
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.evaluation import read_metrics


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told to."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_evaluations_do_not_count_as_training(clock):
    stopwatch = Stopwatch()
    clock[0] += 2
    with stopwatch.evaluating():
        clock[0] += 5
    clock[0] += 1
    assert (stopwatch.seconds, stopwatch.training_seconds) == (8.0, 3.0)


def test_a_resumed_run_counts_on(clock):
    first = Stopwatch()
    with first.evaluating():
        clock[0] += 5
    clock[0] += 2
    state, again = first.state_dict(), Stopwatch()
    clock[0] += 50
    again.load_state_dict(state)
    clock[0] += 1
    assert (again.seconds, again.training_seconds) == (8.0, 3.0)
    again.load_state_dict({"seconds": 4.0})  # of a run that did not tell evaluations apart
    assert (again.seconds, again.training_seconds) == (4.0, 4.0)


def test_a_trainer_logs_training_seconds_beside_metrics_and_evaluations(clock, tmp_path):
    def evaluate():
        clock[0] += 10
        return {"real_return": 1.0}

    options = {"evaluate": evaluate, "eval_interval": 3, "log_interval": 2, "iterations": 4}
    trainer = tiny.make_trainer("model", tiny.make_buffer("random", None), tmp_path, stopwatch=Stopwatch(), **options)
    update = trainer.optimization_stepper.update

    def timed_update(batch):
        clock[0] += 1
        return update(batch)

    trainer.optimization_stepper.update = timed_update
    trainer.train()
    steps, seconds = read_metrics(tmp_path)["training_seconds"]
    assert (steps.tolist(), seconds.tolist()) == ([2, 3, 4], [2.0, 3.0, 4.0])


def test_a_checkpoint_without_one_is_resumed(tmp_path):
    trainer = tiny.make_trainer("model", tiny.make_buffer("random", None), tmp_path)
    tiny.interrupt_at(trainer, "update", 6)
    with pytest.raises(tiny.Interrupted):
        trainer.train()
    again = tiny.make_trainer("model", tiny.make_buffer("random", None), tmp_path, stopwatch=Stopwatch())
    again.resume()
    again.train()
    assert again.iteration == tiny.ITERATIONS
