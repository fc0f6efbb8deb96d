"""The work of the soak test: one long run, and many short ones in one process.

python -m benchmarks.reliability.soak_work FOLDER SECONDS      # the short ones, as the soak test starts them
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModule

from benchmarks.reliability.process_tree import below, held
from torchrl_pwm import evaluate_policy
from torchrl_pwm._utils.checkpoint import load_checkpoint
from torchrl_pwm.envs import MT80
from torchrl_pwm.evaluation import EvaluationResult
from torchrl_pwm.evaluation.task_envs import TaskEnvs
from torchrl_pwm.modules import QUICKSTART_FILE, load_world_model
from torchrl_pwm.runs import load_policy
from torchrl_pwm.runs.cli import main

ROUNDS = "rounds.jsonl"
TASKS = ("mw-drawer-close", "cartpole-swingup", "mw-window-open", "reacher-easy")
_SMALL = [
    "data=quickstart",
    "extraction.starts={count: 2000, resets: 0.1, top: 0.5}",
    "extraction.batch_size=64",
    "extraction.eval_episodes=1",
    "evaluation.episodes=1",
    "evaluation.film=0",
    "evaluation.baselines=null",
    "device=cpu",
    "progress=false",
]
#: With four processes for two policies, each has one that trains and one that evaluates.
LONG = [
    *_SMALL,
    "task=[cup-catch,mw-faucet-open]",
    "workers=4",
    "extraction.iterations=10000000",
    "extraction.warm_start={behavior_updates: 200, value_updates: 20}",
    "extraction.log_interval=10",
    "extraction.eval_interval=100",
    "extraction.save_interval=20",
]
SHORT = [
    *_SMALL,
    "extraction.warm_start={behavior_updates: 0, value_updates: 5}",
    "extraction.log_interval=5",
    "extraction.eval_interval=10",
    "extraction.save_interval=5",
]
UPDATES = 20  # of a short run: half of them at first, the others after it was resumed


def one_round(number: int, folder: Path, kept: TaskEnvs, *, tasks: Sequence[str] = TASKS) -> dict[str, Any]:
    """A run that begins, ends, is read, goes on longer, and whose policy is loaded and evaluated.

    Args:
        number: of the round: its task, whether it is evaluated in a worker process along the way, and which of three
            ways its policy is evaluated in at the end: here, in worker processes, in simulators that are kept.
        folder: for the run, which is removed at the end.
        kept: simulators that are kept from round to round.

    Keyword Args:
        tasks: taken in turns.

    Returns:
        How many updates, evaluations and checkpoints there were, and what this process holds at the end.
    """
    task, begin = tasks[number % len(tasks)], time.perf_counter()
    # With two workers for one policy the second evaluates.
    workers = 1 + number // len(tasks) % 2
    shutil.rmtree(folder, ignore_errors=True)
    half = f"extraction.iterations={UPDATES // 2}"
    main(["mt80", *SHORT, f"task={task}", f"workers={workers}", f"seed={number}", half, f"folder={folder}"])
    states = [load_checkpoint(file.parent) for file in sorted(folder.rglob("checkpoint.json"))]
    main(["mt80", f"resume={folder}", f"extraction.iterations={UPDATES}"])
    states += [load_checkpoint(file.parent) for file in sorted(folder.glob("policies/**/checkpoint.json"))]
    checkpoints = sorted(folder.glob("policies/**/checkpoint-*.pt"))
    if len(states) != 2 or len(checkpoints) != 2:
        raise RuntimeError(f"expected two checkpoints of {task}, found {[file.name for file in checkpoints]}")
    policy = load_policy(folder, "cpu", task=task)
    ways: list[Callable[[], EvaluationResult]] = [
        lambda: evaluate_policy(policy, task, episodes=1, task_set="mt80"),
        lambda: evaluate_policy(policy, task, episodes=2, num_envs=2, parallel=True, task_set="mt80"),
        lambda: kept.evaluate(policy, task, episodes=2, seed=number, num_envs=2, task_set="mt80"),
    ]
    ways[number % len(ways)]()
    logged = [file.read_text().count("\n") for file in folder.glob("policies/*/*/scalars/real_return.csv")]
    shutil.rmtree(folder)
    mine = held([os.getpid()])
    return {
        "round": number,
        "task": task,
        "workers": workers,
        "seconds": round(time.perf_counter() - begin, 1),
        "updates": UPDATES,
        # Each run ends with two: of the last policy and of the best.
        "evaluations": sum(logged) + 2 * len(states) + 1,
        "checkpoints": UPDATES // 5,
        "loaded": len(states) + 1,
        "megabytes": round(mine.megabytes, 1),
        "handles": mine.handles,
        "threads": mine.threads,
        "children": len(below(os.getpid())),
    }


def open_all(kept: TaskEnvs, tasks: Sequence[str] = TASKS) -> None:
    """Opens the simulators that rounds keep, so that none is added later; on the device of their policies."""
    network = torch.nn.Sequential(torch.nn.Linear(MT80.observation_dim, MT80.action_dim), torch.nn.Tanh())
    policy = TensorDictModule(network, ["observation"], ["action"])
    for task in tasks:
        kept.evaluate(policy, task, episodes=2, seed=0, num_envs=2, task_set="mt80")


def rounds(folder: Path, seconds: float) -> None:
    """One after the other for so long; each is a line of a file."""
    torch.set_num_threads(1)
    load_world_model(QUICKSTART_FILE)
    end, number = time.monotonic() + seconds, 0
    with TaskEnvs() as kept:
        open_all(kept)
        while time.monotonic() < end:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                done = one_round(number, folder / "short", kept)
            with open(folder / ROUNDS, "a") as file:
                file.write(json.dumps(done) + "\n")
            number += 1


if __name__ == "__main__":
    rounds(Path(sys.argv[1]), float(sys.argv[2]))
