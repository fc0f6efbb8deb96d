"""Runs of the harness: done ones are skipped, interrupted ones go on, failures leave the others alone."""

from __future__ import annotations

import json

import pytest

from benchmarks.learning.jobs import Job, run_jobs

# Like a script of examples/: writes config.yaml first and summary.json last, and takes folder= or resume=.
SCRIPT = """
import json, sys
from pathlib import Path

given = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = Path(given.get("resume") or given["folder"])
(folder / "config.yaml").write_text("")
if "stop" in given:
    sys.exit("stopped half-way")
(folder / "model.pt").write_text("")
(folder / "summary.json").write_text(json.dumps(given))
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    return str(file)


def test_runs_that_are_done_are_skipped_and_interrupted_ones_resumed(script, tmp_path):
    def job(name, *settings, needs=()):
        return Job(name, script, settings, tmp_path / name, needs)

    jobs = [job("first", "a=1"), job("second", needs=(tmp_path / "first" / "model.pt",))]
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.yaml").write_text("")
    assert run_jobs(jobs, workers=2) == []
    given = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "second")}
    assert given["first"]["resume"] == str(tmp_path / "first") and "a" not in given["first"]
    assert given["second"]["folder"] == str(tmp_path / "second")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert run_jobs(jobs, workers=1) == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_failure_is_told_and_leaves_out_only_what_needs_it(script, tmp_path):
    bad = Job("bad", script, ("stop=1",), tmp_path / "bad")
    after = Job("after", script, (), tmp_path / "after", (tmp_path / "bad" / "model.pt",))
    good = Job("good", script, (), tmp_path / "good")
    failures = run_jobs([bad, after, good], workers=1)
    assert len(failures) == 2
    assert "bad failed" in failures[0] and "stopped half-way" in failures[0]
    assert "after was left out" in failures[1]
    assert good.done and not after.done


def test_a_folder_with_other_settings_is_refused_before_anything_runs(script, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", [])
    Job("first", script, ("a=1",), tmp_path / "first").run()
    other = Job("first", script, ("a=2",), tmp_path / "first")
    new = Job("new", script, (), tmp_path / "new")
    with pytest.raises(ValueError, match=r"other settings .*a=1, a=2"):
        run_jobs([new, other], workers=1)
    assert not (tmp_path / "new").exists()


def test_a_run_keeps_where_it_was_made(script, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", [])
    Job("first", script, ("a=1",), tmp_path / "first").run()
    made = json.loads((tmp_path / "first" / "job.json").read_text())
    assert made["settings"] == ["a=1"] and "cores" in made["machine"]["processor"] and "commit" in made
