"""The example script as its users run it, at a tiny size."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "pwm_mt80.py"

# Everything small; 40 updates leave time to kill a run in their middle.
NETWORKS = ["actor.units=[16]", "value.units=[16]", "loss.horizon=4"]
MODEL = ["model.latent_dim=16", "model.units=[16,16]", "model.encoder_units=[16]", "model.task_dim=4"]
WORLD_MODEL = ["world_model.iterations=6", "world_model.batch_size=8", "world_model.log_interval=2"]
WORLD_MODEL += ["world_model.save_interval=2"]
EXTRACTION = ["extraction.iterations=40", "extraction.batch_size=8", "extraction.log_interval=2"]
EXTRACTION += ["extraction.eval_interval=20", "extraction.eval_episodes=1", "extraction.save_interval=2"]
EVALUATION = ["evaluation.episodes=2", "evaluation.film=0", "progress=false"]
EVALUATION += ["++evaluation.baselines.cloning.updates=4"]
DATA = ["data.episodes.dm_control=2", "data.episodes.metaworld=3", "data.noise=[random,0.5]"]
EXTRACTION += ["extraction.starts={count: 20, resets: 0.1, top: 0.5}", "loss.behavior_coef=0.1"]
EXTRACTION += ["extraction.warm_start={behavior_updates: 4, value_updates: 1}"]
ROUNDS = [
    "rounds.count=1",
    "rounds.iterations=4",
    "rounds.policy_iterations=40",
    "rounds.eval_episodes=2",
    "rounds.episodes={dm_control: 1, metaworld: 1}",
]
TASKS = ["preset=from_scratch", "task=[pendulum-swingup,mw-reach]"]
TINY = [*NETWORKS, *MODEL, *WORLD_MODEL, *EXTRACTION, *EVALUATION, *DATA, *ROUNDS, *TASKS]


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What a run that ends well prints."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    return out


def call(arguments: list[str], monkeypatch) -> None:
    """The script in this process; it ends with SystemExit where it ends with an exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def wait_until(condition, seconds: float = 900.0) -> None:
    """Waits for something that must come, however busy the machine is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def session_members(leader: int) -> list[int]:
    """Processes of a session, without those that have ended."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            members.append(int(stat.parent.name))
    return members
