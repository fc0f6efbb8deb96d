"""Runs pieces one after the other, keeps what is done in a state file, and writes a report."""

from __future__ import annotations

import datetime
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.pieces import GOES_ON, Piece
from torchrl_pwm._utils.files import replace_file

State = dict[str, dict[str, Any]]
_TRIES = 2  # of a piece that fails, or that took the process with it
_TAIL = 12  # lines of a log


def run_pieces(
    pieces: Sequence[Piece], folder: Path, *, minutes: float, say: Callable[[str], object] = print
) -> list[Piece]:
    """Runs what is left of the pieces, as far as the minutes go.

    A piece begins if the time that it may take is left. One that was interrupted begins again; one that fails twice is
    passed over. The file ``state.json`` has the outcome of each.

    Returns:
        The pieces that are left for the next call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end, left = time.monotonic() + 60 * minutes, []
    for piece in pieces:
        state = read_state(folder)
        while _is_left(state.get(piece.name, {})):
            if end - time.monotonic() < 60 * piece.minutes:
                left.append(piece)
                break
            say(f"{piece.name}: {piece.what}, at most {piece.minutes:g} minutes")
            state = _run(piece, folder, state)
            outcome = state[piece.name]
            say(f"{piece.name}: {outcome['status']} after {outcome['seconds']:.0f} s")
            if outcome["status"] == "goes on":
                left.append(piece)
                break
    return left


def read_state(folder: Path) -> State:
    """By name, the outcome of each piece so far."""
    file = folder / "state.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _is_left(outcome: dict[str, Any]) -> bool:
    return outcome.get("status") != "done" and outcome.get("tries", 0) < _TRIES


def _run(piece: Piece, folder: Path, state: State) -> State:
    before = state.get(piece.name, {})
    tries, seconds = before.get("tries", 0) + 1, before.get("seconds", 0.0)
    # Written first, so that a piece that takes this process with it counts as tried.
    _write(folder, state, piece, "running", tries, seconds)
    own = folder / piece.name
    own.mkdir(exist_ok=True)
    command = [part.replace("{folder}", str(own)) for part in piece.command]
    start = time.monotonic()
    with open(folder / f"{piece.name}.log", "wb") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=60 * piece.minutes, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    seconds += time.monotonic() - start
    if code == GOES_ON:
        return _write(folder, state, piece, "goes on", before.get("tries", 0), seconds)
    status = {0: "done", None: "stopped at its time limit"}.get(code, f"failed with exit code {code}")
    return _write(folder, state, piece, status, tries, seconds)


def _write(folder: Path, state: State, piece: Piece, status: str, tries: int, seconds: float) -> State:
    state = {**state, piece.name: {"status": status, "tries": tries, "seconds": round(seconds, 1)}}
    replace_file(folder / "state.json", json.dumps(state, indent=1).encode())
    return state


def write_report(pieces: Sequence[Piece], folder: Path, page: Path, *, machine: str, commit: str) -> None:
    """A page with the outcome of every piece: the tables that it printed, or the end of its output."""
    state = read_state(folder)
    lines = ["# On a GPU", "", f"Machine: {machine}. Commit: {commit}. Date: {datetime.date.today().isoformat()}."]
    lines += ["Command: `make gpu`.", "", "| piece | outcome | seconds |", "|---|---|--:|"]
    for piece in pieces:
        outcome = state.get(piece.name, {"status": "not run", "seconds": 0.0})
        lines.append(f"| {piece.what} | {outcome['status']} | {outcome['seconds']:.0f} |")
    for piece in pieces:
        log = folder / f"{piece.name}.log"
        if log.exists():
            lines += ["", f"## {piece.what}", "", *_result(log.read_text(errors="replace").splitlines())]
    page.parent.mkdir(parents=True, exist_ok=True)
    replace_file(page, "\n".join([*lines, ""]).encode())


def _result(printed: list[str]) -> list[str]:
    table = [line for line in printed if line.startswith("|")]
    return table or ["```text", *printed[-_TAIL:], "```"]
