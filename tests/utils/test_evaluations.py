"""Evaluation in worker processes beside the same evaluation in the training's own."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainers import tiny
from tests.utils.worker_evaluations import die, fail, size, stall
from torchrl_pwm._utils.evaluations import BackgroundEvaluation

OPTIONS: dict[str, Any] = {"eval_interval": 2, "log_interval": 1, "iterations": 6, "save_interval": 3}


class Runs:
    """Trainings of one small policy, with evaluations of either kind."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.offered = folder, []  # type: ignore[var-annotated]

    def trainer(self, name: str, evaluate=size, *, background: bool = True, workers: int = 1) -> Any:
        taken = [0]

        def snapshot() -> dict[str, Any]:
            taken[0] += 1
            weights = {key: value.clone() for key, value in trainer.loss_module.actor_network.state_dict().items()}
            return {"number": taken[0] - 1, "weights": weights, "file": str(self.folder / "begun")}

        def joined(snapshot, metrics):
            self.offered.append((snapshot["number"], metrics["size"]))
            return metrics

        def prompt():
            found = snapshot()
            return joined(found, evaluate({**found, "number": 1}))

        task = BackgroundEvaluation(snapshot, evaluate, joined=joined, workers=workers) if background else prompt
        trainer = tiny.make_trainer(
            "policy", tiny.make_buffer("random", None), self.folder / name, evaluate=task, **OPTIONS
        )
        return trainer

    def rows(self, name: str) -> dict[str, str]:
        files = sorted((self.folder / name).glob("log/scalars/**/*.csv"))
        return {file.stem: file.read_text() for file in files}


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


def test_rows_and_choice_are_those_of_evaluations_that_the_training_waits_for(runs):
    runs.trainer("prompt", background=False).train()
    expected, runs.offered = runs.offered, []
    trainer = runs.trainer("background", workers=2)
    with trainer.evaluate:
        trainer.train()
    assert runs.rows("background") == runs.rows("prompt")
    assert runs.offered == expected and len(expected) == 3
    assert not multiprocessing.active_children()


def test_a_resumed_run_evaluates_again_what_its_checkpoint_held(runs):
    runs.trainer("whole", background=False).train()
    expected, runs.offered = runs.offered, []
    first = runs.trainer("resumed")
    first.evaluate.results = lambda *, wait: iter(())  # nothing is joined before the checkpoint at 3
    tiny.interrupt_at(first, "update", 5)
    with first.evaluate, pytest.raises(tiny.Interrupted):
        first.train()
    assert not multiprocessing.active_children() and not runs.offered
    again = runs.trainer("resumed")
    with again.evaluate:
        again.resume()
        assert again.iteration == 3 and again.evaluate.iterations == [2]
        again.train()
    assert [size for _, size in runs.offered] == [size for _, size in expected]
    assert runs.rows("resumed") == runs.rows("whole")


def test_a_row_that_was_written_after_the_checkpoint_is_not_written_twice(runs):
    runs.trainer("whole", background=False).train()
    first = runs.trainer("resumed")
    with first.evaluate:
        first.evaluate.submit(3)
        first.iteration = 3
        for _ in range(3):
            first.log({"loss": 1.0})
        first.save()
        first.log_evaluation()
        while not (runs.folder / "resumed" / "log" / "scalars" / "size.csv").exists():
            first.log_evaluation()
    again = runs.trainer("resumed")
    with again.evaluate:
        again.resume()
        again.train()
    assert [row.split(",")[0] for row in runs.rows("resumed")["size"].splitlines()] == ["3", "4", "6"]


def test_the_failure_of_a_worker_is_that_of_the_run(runs):
    trainer = runs.trainer("failing", fail)
    with trainer.evaluate, pytest.raises(ValueError, match="the simulator of snapshot 0 diverged"):
        trainer.train()
    assert not multiprocessing.active_children()


def test_a_worker_that_was_killed_is_named(runs):
    trainer = runs.trainer("killed", die)
    with trainer.evaluate, pytest.raises(ChildProcessError, match="policy of iteration 2 was killed"):
        trainer.train()


def test_an_interrupted_run_leaves_no_process_behind(runs):
    trainer = runs.trainer("interrupted", stall)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), trainer.evaluate:
        trainer.evaluate.submit(1)
        while not (runs.folder / "begun").exists():
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert not multiprocessing.active_children() and time.monotonic() - begin < 300


def test_no_more_snapshots_wait_than_the_limit():
    evaluation = BackgroundEvaluation(lambda: {"number": 1, "weights": {"a": torch.ones(2)}}, size, limit=2)
    with evaluation:
        joined = []
        for iteration in range(6):
            evaluation.submit(iteration)
            joined += evaluation.results(wait=False)
            assert len(evaluation.iterations) <= 2
        joined += evaluation.results(wait=True)
    assert joined == [(iteration, {"size": 2.0}) for iteration in range(6)]
