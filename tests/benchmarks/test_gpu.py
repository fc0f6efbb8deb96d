"""The runner of the GPU's pieces, with small commands; and its measuring scripts at tiny sizes on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.learning import command
from benchmarks.gpu.pieces import GOES_ON, PIECES, Piece
from benchmarks.gpu.runner import read_state, run_pieces, write_report

REPOSITORY = Path(__file__).parents[2]


def script(name, text, minutes=1.0):
    return Piece(name, f"what {name} shows", (sys.executable, "-c", text), minutes)


def counting(name, file, then=""):
    """A piece that notes in a file that it was called."""
    return script(name, f"open({str(file)!r}, 'a').write('{name} ')\n{then}")


def statuses(folder):
    return {name: outcome["status"] for name, outcome in read_state(folder).items()}


def test_a_further_call_goes_on_where_the_last_one_stopped(tmp_path):
    calls = tmp_path / "calls"
    long = Piece("long", "more than is left", counting("long", calls).command, 60.0)
    pieces = [counting("first", calls), long, counting("last", calls)]
    assert run_pieces(pieces, tmp_path, minutes=2.0) == [long]
    assert calls.read_text() == "first last "
    assert run_pieces(pieces, tmp_path, minutes=61.0) == []
    assert calls.read_text() == "first last long "
    assert run_pieces(pieces, tmp_path, minutes=61.0) == []
    assert calls.read_text() == "first last long "


def test_a_piece_that_fails_is_tried_twice_and_passed_over(tmp_path):
    calls = tmp_path / "calls"
    pieces = [counting("bad", calls, "raise SystemExit(3)"), counting("good", calls)]
    assert run_pieces(pieces, tmp_path, minutes=5.0) == []
    assert calls.read_text() == "bad bad good "
    assert statuses(tmp_path) == {"bad": "failed with exit code 3", "good": "done"}
    run_pieces(pieces, tmp_path, minutes=5.0)
    assert calls.read_text() == "bad bad good "


def test_a_piece_is_stopped_at_its_time_limit(tmp_path):
    slow = script("slow", "import time; time.sleep(60)", minutes=0.01)
    assert run_pieces([slow], tmp_path, minutes=1.0) == []
    assert statuses(tmp_path) == {"slow": "stopped at its time limit"}


def test_a_piece_with_more_to_do_is_left_for_the_next_call_in_its_own_folder(tmp_path):
    text = f"""
import pathlib, sys
file = pathlib.Path(sys.argv[1]) / "done"
file.write_text((file.read_text() if file.exists() else "") + "part ")
sys.exit(0 if file.read_text() == "part part part " else {GOES_ON})
"""
    piece = Piece("long", "in parts", (sys.executable, "-c", text, "{folder}"), 1.0)
    assert run_pieces([piece], tmp_path, minutes=2.0) == [piece]
    assert run_pieces([piece], tmp_path, minutes=2.0) == [piece]
    assert run_pieces([piece], tmp_path, minutes=2.0) == []
    assert statuses(tmp_path) == {"long": "done"}


def test_a_piece_that_took_the_runner_with_it_counts_as_tried(tmp_path):
    calls = tmp_path / "calls"
    (tmp_path / "state.json").write_text(json.dumps({"killer": {"status": "running", "tries": 1, "seconds": 5.0}}))
    run_pieces([counting("killer", calls, "raise SystemExit(1)")], tmp_path, minutes=5.0)
    assert calls.read_text() == "killer "
    assert read_state(tmp_path)["killer"]["tries"] == 2


def test_the_report_has_the_tables_of_the_pieces_and_the_end_of_other_output(tmp_path):
    table = script("table", "print('noise'); print('| a | b |'); print('| 1 | 2 |')")
    broken = script("broken", "print('before'); raise ValueError('what went wrong')")
    later = script("later", "", minutes=60.0)
    pieces = [table, broken, later]
    run_pieces(pieces, tmp_path, minutes=5.0)
    page = tmp_path / "results" / "gpu_card.md"
    write_report(pieces, tmp_path, page, machine="a card", commit="abc")
    text = page.read_text()
    assert "| a | b |\n| 1 | 2 |" in text and "noise" not in text
    assert "ValueError: what went wrong" in text and "failed with exit code 1" in text
    assert "| what later shows | not run | 0 |" in text and "a card" in text and "abc" in text


def test_pieces_are_of_under_nine_minutes_and_have_names_of_their_own():
    assert all(0 < piece.minutes < 9 for piece in PIECES)
    assert len({piece.name for piece in PIECES}) == len(PIECES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "needs an NVIDIA GPU" in done.stderr


@pytest.mark.parametrize("kind", ["pwm", "model", "tdmpc2"])
def test_updates_are_timed(kind, monkeypatch, capsys):
    from benchmarks.gpu import updates

    options = ["--size", "tiny", "--batch", "4", "--updates", "10", "--warm-up", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["updates", kind, *options])
    updates.main()
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.count("|") == row.count("|") and row.startswith(f"| {kind}, tiny, eager | 4 | 10 |")


def test_a_learning_run_is_begun_and_then_resumed(tmp_path):
    begun = command("shac_simulator", tmp_path / "run", ["env=newton/ant"])
    assert f"folder={tmp_path / 'run'}" in begun and "env=newton/ant" in begun
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    resumed = command("shac_simulator", tmp_path / "run", ["env=newton/ant"])
    assert f"resume={tmp_path / 'run'}" in resumed and "env=newton/ant" not in resumed
