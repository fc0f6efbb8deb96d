"""Runs of the harness: done ones are skipped, interrupted ones go on, failures leave the others alone."""

from __future__ import annotations

import argparse
import json
import os
import sys

import pytest

pytest.importorskip("hydra")

from benchmarks.learning.jobs import Job
from benchmarks.learning.runner import _work, add_engine, chosen_engine, run_jobs
from torchrl_pwm._utils.files import locked

# Like a script of examples/: writes config.yaml first and summary.json last, and takes folder= or resume=.
SCRIPT = """
import json, os, signal, sys, torch
from pathlib import Path

given = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = Path(given.get("resume") or given["folder"])
(folder / "config.yaml").write_text("")
if "stop" in given:
    sys.exit(given["stop"])
if "dies" in given:
    os.kill(os.getpid(), signal.SIGKILL)
(folder / "model.pt").write_text("")
(folder / "summary.json").write_text(json.dumps({**given, "process": os.getpid(), "threads": torch.get_num_threads()}))
"""
SUBMITIT = ["submitit", "cluster=local"]


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    return str(file)


def engine(*options):
    parser = argparse.ArgumentParser()
    add_engine(parser)
    return chosen_engine(parser.parse_args(options))


ENGINES = [
    pytest.param(["--workers", "2"], id="local"),
    pytest.param(["--engine", *SUBMITIT], id="submitit", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", ENGINES)
def test_runs_that_are_done_are_skipped_and_interrupted_ones_resumed(options, script, tmp_path):
    if "submitit" in options:
        pytest.importorskip("submitit")

    def job(name, *settings, needs=()):
        return Job(name, script, settings, tmp_path / name, needs)

    jobs = [job("first", "a=1"), job("dies", "dies=1"), job("second", needs=(tmp_path / "first" / "model.pt",))]
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").write_text("")
    where = engine(*options)
    # tried again, it is resumed, and does not die once more
    assert run_jobs(jobs, where, tmp_path) == []
    given = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "dies", "second")}
    assert given["first"]["resume"] == str(tmp_path / "first") and "a" not in given["first"]
    assert given["second"]["folder"] == str(tmp_path / "second")
    assert given["dies"]["resume"] == str(tmp_path / "dies")
    assert len({one["process"] for one in given.values()} | {os.getpid()}) == 4
    assert {one["threads"] for one in given.values()} == {1}
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert run_jobs(jobs, engine(), tmp_path) == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("options", ENGINES)
def test_a_failure_is_told_and_leaves_out_only_what_needs_it(options, script, tmp_path):
    if "submitit" in options:
        pytest.importorskip("submitit")
    bad = Job("bad", script, ("stop=stopped half-way",), tmp_path / "bad")
    after = Job("after", script, (), tmp_path / "after", (tmp_path / "bad" / "model.pt",))
    good = Job("good", script, (), tmp_path / "good")
    failures = run_jobs([bad, after, good], engine(*options), tmp_path)
    assert len(failures) == 2
    assert "bad failed" in failures[0] and "stopped half-way" in failures[0]
    assert "after was left out" in failures[1]
    assert good.done and not after.done


def test_a_folder_with_other_settings_is_refused_before_anything_runs(script, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", [*sys.path])
    Job("first", script, ("a=1",), tmp_path / "first").run()
    other = Job("first", script, ("a=2",), tmp_path / "first")
    new = Job("new", script, (), tmp_path / "new")
    with pytest.raises(ValueError, match=r"other settings .*a=1, a=2"):
        run_jobs([new, other], engine(), tmp_path)
    assert not (tmp_path / "new").exists()


def test_a_run_keeps_where_it_was_made(script, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", [*sys.path])
    Job("first", script, ("a=1",), tmp_path / "first").run()
    made = json.loads((tmp_path / "first" / "job.json").read_text())
    assert made["settings"] == ["a=1"] and "cores" in made["machine"]["processor"] and "commit" in made


def test_what_slurm_queues_again_has_not_failed(script, tmp_path, monkeypatch):
    """Where a job's time is over, submitit ends it from a signal with exit code -1."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "ends.py"
    file.write_text("raise SystemExit(-1)")
    with pytest.raises(SystemExit):
        _work(Job("ends", str(file), (), tmp_path / "ends"), print)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["ray", "hours=8"], "there is no option engine.hours"),
        (["slurm"], "there is no engine=slurm; expected one of local, ray, submitit"),
        (["submitit"], "sbatch, which this machine does not have.*engine.cluster=local"),
    ],
)
def test_an_engine_that_cannot_be_is_named(options, said, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Exception, match=said):
        engine("--engine", *options)


def test_two_suites_do_not_end_each_others_jobs(script, tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "slurm").mkdir()
    where = engine("--engine", "submitit", "engine.cluster=local")
    with locked(tmp_path / "slurm"), pytest.raises(BlockingIOError, match="another process waits for the jobs of"):
        run_jobs([Job("first", script, (), tmp_path / "first")], where, tmp_path)
