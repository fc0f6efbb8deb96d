"""Resident memory along evaluations of a task, whose simulators are kept or built anew each time.

    python -m benchmarks.reliability.memory [STEPS]

Each case in a process of its own, on one thread of the CPU; episodes are cut after STEPS, by default after as many as
the task has. Table and picture go to ``benchmarks/results/memory_evaluation.md`` and ``.png``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import datetime
import importlib.metadata
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from benchmarks.machine import machine
from torchrl_pwm import evaluate_policy
from torchrl_pwm.envs import MT80, TaskSet, make_task_envs
from torchrl_pwm.evaluation.task_envs import TaskEnvs
from torchrl_pwm.evaluation.task_episodes import TaskEpisodes

RESULTS = Path(__file__).parents[1] / "results" / "memory_evaluation.md"
KEPT, ANEW = 500, 60  # evaluations
EPISODES = 2  # of each, side by side
ALLOWED = 0.1  # how far what is kept may move from where it begins
Evaluate = Callable[[int], object]


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        print(json.dumps(list(measured(sys.argv[2], int(sys.argv[1])))))
        return
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else MT80["mw-reach"].episode_length
    found = {}
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.reliability.memory", str(steps), name]
        found[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(row(name, found[name]), flush=True)
    write(found, steps)


def measured(name: str, steps: int) -> Iterator[tuple[int, float]]:
    """Numbers of evaluations, from the first on, and the megabytes resident after them."""
    warnings.simplefilter("ignore")
    task, count, make = CASES[name]
    table = TaskSet("cut", [dataclasses.replace(MT80[task], episode_length=steps)])
    evaluate, every = make(task, table), max(count // 100, 1)
    for number in range(1, count + 1):
        evaluate(number)
        if number == 1 or number % every == 0:
            yield number, resident()


def resident() -> float:
    """Megabytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def still(td: TensorDictBase) -> TensorDictBase:
    """No action; of the tasks of one set as many entries as it has."""
    return td.set("action", torch.zeros_like(td["action_mask"], dtype=torch.float32))


def kept_envs(task: str, table: TaskSet) -> Evaluate:
    envs = TaskEnvs()
    options: dict[str, Any] = {"task_set": table, "episodes": EPISODES, "num_envs": EPISODES}
    return lambda number: envs.evaluate(still, task, seed=number, **options)


def kept_simulators(task: str, table: TaskSet) -> Evaluate:
    played = TaskEpisodes(task, task_set=table)
    return lambda number: played.evaluate(still, EPISODES, number)


def built_anew(task: str, table: TaskSet) -> Evaluate:
    def evaluate(number: int) -> None:
        env = make_task_envs(task, EPISODES, task_set=table)
        evaluate_policy(still, env, task=task, episodes=EPISODES, seed=number)
        env.close()

    return evaluate


def built_and_trimmed(task: str, table: TaskSet) -> Evaluate:
    evaluate = built_anew(task, table)
    return lambda number: (evaluate(number), ctypes.CDLL(None).malloc_trim(0))


def by_name(task: str, table: TaskSet) -> Evaluate:
    options: dict[str, Any] = {"task_set": table, "episodes": EPISODES, "num_envs": EPISODES}
    return lambda number: evaluate_policy(still, task, seed=number, **options)


CASES: dict[str, tuple[str, int, Callable[[str, TaskSet], Evaluate]]] = {
    "mw-reach, simulators kept (TaskEnvs)": ("mw-reach", KEPT, kept_envs),
    "mw-reach, simulators kept (TaskEpisodes)": ("mw-reach", KEPT, kept_simulators),
    "pendulum-swingup, simulators kept (TaskEnvs)": ("pendulum-swingup", KEPT, kept_envs),
    "mw-reach, built anew": ("mw-reach", ANEW, built_anew),
    "mw-reach, built anew, malloc_trim after each": ("mw-reach", ANEW, built_and_trimmed),
    "mw-reach, built anew by evaluate_policy, which collects and trims": ("mw-reach", ANEW, by_name),
}


def row(name: str, found: list[tuple[int, float]]) -> str:
    megabytes = [value for _, value in found]
    moved = max(abs(value / megabytes[0] - 1) for value in megabytes)
    numbers = f"{megabytes[0]:.0f} | {megabytes[-1]:.0f} | {min(megabytes):.0f} to {max(megabytes):.0f}"
    within = ("yes" if moved <= ALLOWED else "**no**") if "kept" in name else "-"
    return f"| {name} | {found[-1][0]} | {numbers} | {moved:.1%} | {within} |"


def write(found: dict[str, list[tuple[int, float]]], steps: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, each in found.items():
        axes.plot(*zip(*each, strict=True), label=name)
    axes.set(xlabel="evaluations", ylabel="resident memory in MB", ylim=(0, None))
    axes.legend(fontsize=7)
    figure.savefig(RESULTS.with_suffix(".png"), dpi=120)
    about = machine(torch.device("cpu"))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mujoco", "metaworld", "dm_control"))
    whole = MT80["mw-reach"].episode_length
    episodes = "of whole length" if steps == whole else f"cut after {steps} steps (a whole one has {whole})"
    lines = [
        "# Memory along evaluations",
        "",
        f"`python -m benchmarks.reliability.memory {steps}`, {datetime.date.today()}, {about['processor']}, "
        f"{about['system']}, torch {torch.__version__},",
        f"{versions}, one thread. Megabytes resident. An evaluation is {EPISODES} episodes of mw-reach or "
        f"pendulum-swingup side by side, {episodes}.",
        "",
        f"| case | evaluations | first | last | from, to | farthest from the first | within {ALLOWED:.0%} |",
        "|---|---|---|---|---|---|---|",
        *(row(name, each) for name, each in found.items()),
        "",
        f"![Memory along evaluations]({RESULTS.with_suffix('.png').name})",
    ]
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
