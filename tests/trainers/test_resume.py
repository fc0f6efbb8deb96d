"""A run that is interrupted anywhere and resumed ends with the numbers of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.record.loggers import CSVLogger

from tests.trainers import tiny
from torchrl_pwm.trainers import has_checkpoint

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def uninterrupted(root, tmp_path_factory):
    """The trainer and the folder of the run that nothing interrupts, by kind and buffer."""
    done = {}

    def get(kind, buffer):
        if (kind, buffer) not in done:
            folder = tmp_path_factory.mktemp("whole")
            done[kind, buffer] = tiny.run(kind, buffer, root, folder).state_dict(), folder
        return done[kind, buffer]

    return get


def assert_like_uninterrupted(trainer, folder, expected):
    state, whole = expected
    tiny.assert_same(trainer.state_dict(), state)
    assert tiny.metrics_of(folder) == tiny.metrics_of(whole) != {}


@pytest.mark.parametrize("buffer", tiny.BUFFERS)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_buffer_goes_on_where_it_was(kind, buffer, root, tmp_path, uninterrupted):
    with pytest.raises(tiny.Interrupted):
        tiny.run(kind, buffer, root, tmp_path, "update", 6)
    assert has_checkpoint(tmp_path / "checkpoint")
    assert_like_uninterrupted(tiny.run(kind, buffer, root, tmp_path), tmp_path, uninterrupted(kind, buffer))


# With a save every two updates: before the first, right after one, in between, and while files are replaced
# (each save replaces two: the data and the manifest).
PLACES = [
    ("sample", 1),
    ("sample", 3),
    ("update", 2),
    ("evaluate", 2),
    ("save", 1),
    ("save", 2),
    ("save", 3),
    ("save", 8),
]


@pytest.mark.parametrize(("place", "count"), PLACES)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_place_of_the_loop_may_be_the_last(kind, place, count, root, tmp_path, uninterrupted):
    with pytest.raises(tiny.Interrupted):
        tiny.run(kind, "store", root, tmp_path, place, count)
    assert_like_uninterrupted(tiny.run(kind, "store", root, tmp_path), tmp_path, uninterrupted(kind, "store"))


def test_a_run_may_be_interrupted_again_and_again(root, tmp_path, uninterrupted):
    for count in (3, 2, 3, 1):
        with pytest.raises(tiny.Interrupted):
            tiny.run("policy", "store", root, tmp_path, "update", count)
    assert_like_uninterrupted(tiny.run("policy", "store", root, tmp_path), tmp_path, uninterrupted("policy", "store"))


@pytest.mark.parametrize(("kind", "place", "count"), [("policy", "update", 6), ("model", "save", 4)])
def test_a_killed_process_is_no_different(kind, place, count, root, tmp_path, uninterrupted):
    command = [sys.executable, "-m", "tests.trainers.tiny", kind, str(root), str(tmp_path), place, str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert_like_uninterrupted(tiny.run(kind, "store", root, tmp_path), tmp_path, uninterrupted(kind, "store"))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_resuming_a_finished_run_does_nothing(kind, root, tmp_path, uninterrupted):
    tiny.run(kind, "store", root, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    trainer = tiny.run(kind, "store", root, tmp_path, "sample", 1)
    assert_like_uninterrupted(trainer, tmp_path, uninterrupted(kind, "store"))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


def test_another_seed_gives_other_numbers(root, uninterrupted):
    torch.manual_seed(0)
    trainer = tiny.make_trainer("policy", tiny.make_buffer("store", root))
    torch.manual_seed(18)
    trainer.train()
    with pytest.raises(AssertionError):
        tiny.assert_same(trainer.state_dict()["loss_module"], uninterrupted("policy", "store")[0]["loss_module"])


def test_resume_from_a_row_cut_short(root, tmp_path, uninterrupted):
    with pytest.raises(tiny.Interrupted):
        tiny.run("model", "store", root, tmp_path, "update", 6)
    with open(tmp_path / "log" / "scalars" / "loss_reward.csv", "a") as file:
        file.write("6,0.12")
    assert_like_uninterrupted(tiny.run("model", "store", root, tmp_path), tmp_path, uninterrupted("model", "store"))


def test_a_logger_in_use_goes_on_after_a_resume(root, tmp_path, uninterrupted):
    logger = CSVLogger("log", log_dir=str(tmp_path))
    replay = tiny.make_buffer("store", root)
    trainer = tiny.make_trainer("policy", replay, tmp_path, logger=logger, evaluate=tiny.draw, eval_interval=2)
    torch.manual_seed(17)
    trainer = tiny.make_trainer("policy", replay, tmp_path, logger=logger, evaluate=tiny.draw, eval_interval=2)
    tiny.interrupt_at(trainer, "update", 6)
    with pytest.raises(tiny.Interrupted):
        trainer.train()
    again = tiny.make_trainer("policy", replay, tmp_path, logger=logger, evaluate=tiny.draw, eval_interval=2)
    again.resume()
    again.train()
    assert_like_uninterrupted(again, tmp_path, uninterrupted("policy", "store"))


def test_resume_without_a_checkpoint_says_where_it_looked(root, tmp_path):
    trainer = tiny.make_trainer("model", tiny.make_buffer("store", root))
    with pytest.raises(FileNotFoundError, match="No checkpoint in"):
        trainer.resume(tmp_path)
    with pytest.raises(ValueError, match="save_folder"):
        trainer.resume()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("store", "random", "another kind of replay buffer"),
        ("random", "store", "another kind of replay buffer"),
        ("random", "own generator", "generator of its own"),
    ],
)
def test_resume_with_another_buffer_is_refused(first, second, message, root, tmp_path):
    tiny.run("model", first, root, tmp_path)
    with pytest.raises(ValueError, match=message):
        tiny.run("model", second, root, tmp_path)


def test_a_prefetching_buffer_that_cannot_be_saved_is_refused(tmp_path):
    buffer = ReplayBuffer(storage=LazyTensorStorage(24), batch_size=6, prefetch=2)
    buffer.extend(tiny.sequences())
    with pytest.raises(ValueError, match="without prefetch"):
        tiny.make_trainer("model", buffer, tmp_path)
    tiny.make_trainer("model", buffer, iterations=1).train()
