"""Every kind of run, killed at a random moment, comes to the numbers of an undisturbed one."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("hydra")

from benchmarks.learning.jobs import ROOT
from benchmarks.reliability.kills import records
from benchmarks.reliability.kinds import kinds

pytestmark = pytest.mark.slow


def test_a_killed_run_of_every_kind_comes_to_the_same_numbers(tmp_path):
    """Its kills are not those of the record: they are kept apart. Some fifteen minutes."""
    places = ["--folder", str(tmp_path), "--results", str(tmp_path), "--on", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.reliability", "--kills", str(len(kinds())), "--most", "1", *places]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    killed = {record["kind"] for record in records(tmp_path) if record["kills"]}
    assert killed == set(kinds())
