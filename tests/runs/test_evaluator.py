"""Runs whose policy is evaluated in a process of its own, ``evaluator=true``: the numbers of those that wait for it."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("hydra")
pytest.importorskip("matplotlib")

from tests.examples.test_pwm_online import SHORT
from tests.examples.test_pwm_online import TINY as PWM
from tests.examples.test_shac_simulator import TINY as SHAC
from tests.examples.test_tdmpc2_mt80 import TINY as TDMPC2_OFFLINE
from tests.examples.test_tdmpc2_online import SIMULATOR
from tests.examples.test_tdmpc2_online import TINY as TDMPC2
from tests.runs.test_offline import TINY as OFFLINE
from tests.trainers.tiny import write_store
from torchrl_pwm import write_episodes
from torchrl_pwm._utils.evaluations import BackgroundEvaluation
from torchrl_pwm.runs.cli import main
from torchrl_pwm.trainers.trainer import Trainer

COMMANDS = {
    "pwm": ["simulator", *PWM, SHORT],
    "shac": ["shac", *SHAC],
    "tdmpc2": ["tdmpc2-online", *TDMPC2, *SIMULATOR],
    "tdmpc2-mt80": ["tdmpc2-mt80", *TDMPC2_OFFLINE, "training.eval_interval=2", "plan=false"],
    "offline": [
        "offline",
        "data=data",
        "env=tests.envs.short_pendulum:ShortPendulum-v0",
        "extraction.average=0.5",
        "extraction.select=best",
        *OFFLINE,
    ],
}
NEEDS = {"tdmpc2-mt80": ("metaworld", "dm_control"), "offline": ("gymnasium",)}
SLOW = ("pwm", "tdmpc2", "tdmpc2-mt80")  # shac and offline take their ways
KINDS = [
    pytest.param(
        kind,
        marks=[
            pytest.mark.skipif(missing, reason="the envs of this run are not installed"),
            *([pytest.mark.slow] if kind in SLOW else []),
        ],
    )
    for kind in COMMANDS
    for missing in [any(importlib.util.find_spec(name) is None for name in NEEDS.get(kind, ()))]
]


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(kind, folder, *overrides):
    data = []
    if kind == "tdmpc2-mt80":
        data = ["data=open", f"data.root={Path('data') if Path('data').exists() else write_store(Path('data'))}"]
    if kind == "offline" and not Path("data").exists():
        import numpy as np

        draws = np.random.default_rng(0)
        episodes = [
            {"observation": draws.normal(size=(21, 3)), "action": draws.uniform(-1, 1, (20, 1)), "reward": np.zeros(20)}
            for _ in range(4)
        ]
        write_episodes("data", episodes, action_low=-2.0, action_high=2.0)
    main([*COMMANDS[kind], *data, f"folder={folder}", *overrides])
    return numbers(folder)


def numbers(folder):
    """Every number that was logged and reported, without seconds."""
    found = {
        str(file.relative_to(folder)): file.read_text()
        for file in sorted(Path(folder).rglob("*.csv"))
        if file.stem != "training_seconds"
    }
    assert any("real_" in name for name in found)
    summary = json.loads((Path(folder) / "summary.json").read_text())
    rows = summary["outcomes"] if "outcomes" in summary else summary["tasks"]
    return {**found, "summary": rows}


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluator_changes_no_number(kind):
    assert run(kind, "apart", "evaluator=true") == run(kind, "here")
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("kind", "then"), [("shac", "true"), pytest.param("tdmpc2", "false", marks=pytest.mark.slow)])
def test_an_evaluation_that_a_killed_run_was_waiting_for_is_done_again(kind, then, monkeypatch):
    """The checkpoint of iteration 2 holds it; the resumed run may evaluate where it likes."""
    log = Trainer.log

    def log_until_killed(trainer, metrics):
        if trainer.iteration == 3:
            raise Killed
        log(trainer, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(BackgroundEvaluation, "results", lambda self, *, wait: iter(()))
        patch.setattr(Trainer, "log", log_until_killed)
        with pytest.raises(Killed):
            run(kind, "killed", "evaluator=true")
    assert not multiprocessing.active_children()
    assert not list(Path("killed").rglob("real_return.csv"))
    main([COMMANDS[kind][0], "resume=killed", f"evaluator={then}"])
    assert numbers("killed") == run(kind, "whole")


def test_a_run_that_is_interrupted_from_the_keyboard_ends_its_evaluator_in_silence():
    command = [sys.executable, "-m", "torchrl_pwm.runs.cli", *COMMANDS["shac"], "folder=run", "evaluator=true"]
    process = subprocess.Popen(
        [*command, "iterations=100000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
        # Where the tests run in the background, an interruption is ignored, which a child inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not list(Path("run").rglob("real_return.csv")):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process gets it
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in error, error
