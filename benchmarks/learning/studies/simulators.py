"""SHAC and online PWM in simulators, three seeds each: runs, table and curves.

    python -m benchmarks.learning.studies.simulators run                      # what is missing; resumable
    python -m benchmarks.learning.studies.simulators run --tasks ant --methods shac
    python -m benchmarks.learning.studies.simulators run --tasks ant --methods pwm -- \\
        pwm=newton/ant_recorded pretraining.data=steps
    python -m benchmarks.learning.studies.simulators report           # benchmarks/results/simulators.{md,csv,png}

The runs are those of :mod:`benchmarks.learning.suite`, which compares more methods and reads them too: --folder
runs/simulators. A task counts as solved where the mean return is at least nine tenths of the way from the better of
random actions and none to the hand-written controller; on the ant, which has no controller, the forward progress of an
episode is compared with random actions'.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from benchmarks.learning.groups import METHODS, groups
from benchmarks.learning.jobs import split_settings, study_parser
from benchmarks.learning.plans import Plan
from benchmarks.learning.records import env_steps_curve
from benchmarks.learning.results import markdown_table, write_csv
from benchmarks.learning.runner import add_engine, chosen_engine, complete
from benchmarks.learning.studies.progress import forward_progress, random_progress
from benchmarks.machine import processor
from torchrl_pwm import load_policy
from torchrl_pwm.evaluation import read_metrics
from torchrl_pwm.runs.cli import user_errors
from torchrl_pwm.runs.pwm_online import open_steps
from torchrl_pwm.runs.saved import read_config

SHOWN = ("shac", "pwm")
#: Tasks, and the groups that they are of.
TASKS = {"cartpole_swingup": "closed_form", "double_pendulum": "closed_form", "ant": "newton"}
SOLVED = 0.9
_LEVELS = {
    "controller": ("hand-written controller", "tab:green"),
    "random": ("random actions", "tab:gray"),
    "none": ("no action", "tab:brown"),
}
_HEAD = ("task", "method", "best policy, mean of the seeds (each)", "last policy", "controller", "random", "none")
_HEAD += ("counts", "solved from")
_HEAD += ("seeds solved", "steps", "minutes")
_PAGE = """# SHAC and online PWM in simulators

Made with `python -m benchmarks.learning.studies.simulators run` and `report`, {made}; {machine}; one thread a run, no
GPU. Returns are means over 64 episodes of the mean action, from start states that training does not see; the best
policy is that of the best evaluation during training, from other start states than these; - where it was not recorded.
A task counts as solved where the mean return of the policy that counts is at least nine tenths of the way from the
better of random actions and none to the hand-written controller.

{table}

![curves](simulators.png)

The return of 16 episodes during training, over the steps that all envs took together and over the minutes of the
training. Curves of runs that begin with recorded steps begin after these; the minutes in which they were recorded are
not in theirs. Every line is one seed; what is far below the better of random actions and none is cut off.
"""


def read_run(folder: Path, method: str) -> dict[str, Any]:
    """The entries of a finished run in the table, and its ``curve``."""
    summary = json.loads((folder / "summary.json").read_text())
    config: Any = read_config(folder)
    returns = {name: outcome["return_mean"] for name, outcome in summary["outcomes"].items()}
    record = {"method": method, "task": summary["task"], "seed": summary["seed"], "return": returns["policy"]}
    select = config.get("select", "last")  # of the first runs of SHAC the last one counted
    record |= {"select": select, "last": returns.get("last policy"), "best": returns.get("best policy")}
    record[select] = returns["policy"]
    record |= {key: summary[key] for key in ("steps", "seconds", "iterations", "made")}
    record |= {"random": returns["random actions"], "none": returns["no action"]}
    record["controller"] = returns.get("hand-written controller")
    record |= {"progress": None, "random progress": None}
    if record["task"] == "ant":
        record["progress"] = forward_progress(load_policy(folder, "cpu"), config)
        record["random progress"] = random_progress(record["seed"], config)
    recorded = OmegaConf.select(config, "pretraining.data")
    record["recorded"] = open_steps(recorded).numel() if recorded else 0
    steps, minutes, score = env_steps_curve(read_metrics(folder), summary)
    return {**record, "curve": ((steps + record["recorded"]).tolist(), minutes.tolist(), score.tolist())}


def threshold(record: dict[str, Any]) -> float | None:
    """The return from which the task counts as solved."""
    if record["controller"] is None:
        return None
    best = max(record["random"], record["none"])
    return best + SOLVED * (record["controller"] - best)


def report(folder: Path, results: Path) -> None:
    """Writes the table, the rows behind it and the picture.

    Raises:
        FileNotFoundError: if no run is finished.
    """
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for task in TASKS:
        for method in SHOWN:
            files = sorted((folder / method / task).glob("seed-*/summary.json"))
            if files:
                runs[task, method] = [read_run(file.parent, method) for file in files]
    if not runs:
        raise FileNotFoundError(f"no finished run in {folder}: python -m benchmarks.learning.studies.simulators run")
    records = [record for seeds in runs.values() for record in seeds]
    draw(runs, results / "simulators.png")
    write_csv([{k: v for k, v in record.items() if k != "curve"} for record in records], results / "simulators.csv")
    table = markdown_table(_HEAD, [_cells(task, method, seeds) for (task, method), seeds in runs.items()])
    (results / "simulators.md").write_text(_PAGE.format(table=table, made=records[-1]["made"], machine=processor()))
    print(table)


def _cells(task: str, method: str, seeds: list[dict[str, Any]]) -> list[str]:
    first, least = seeds[0], threshold(seeds[0])
    returns = [record["return"] for record in seeds]
    policies = [_each([record[which] for record in seeds]) for which in ("best", "last")]
    levels = ["-" if first[name] is None else f"{first[name]:.0f}" for name in ("controller", "random", "none")]
    if least is not None:
        solved = [f"{least:.0f}", f"{sum(value >= least for value in returns)} of {len(seeds)}"]
    else:
        metres = [record["progress"] for record in seeds]
        random = np.mean([record["random progress"] for record in seeds])
        each = ", ".join(f"{value:.1f}" for value in metres)
        solved = ["-", f"{np.mean(metres):.1f} m forward ({each}); random {random:.2f} m"]
    name, steps = METHODS[method][0], f"{first['steps'] / 1e6:.2f} M"
    if first["recorded"]:
        steps += f", after {first['recorded'] / 1e6:.2f} M recorded ones"
    minutes = f"{np.mean([record['seconds'] for record in seeds]) / 60:.1f}"
    return [task, name, *policies, *levels, first["select"], *solved, steps, minutes]


def _each(returns: list[float | None]) -> str:
    """Their mean and each of them; a dash where one is missing."""
    known = [value for value in returns if value is not None]
    if len(known) < len(returns):
        return "-"
    return f"{np.mean(known):.0f} ({', '.join(f'{value:.0f}' for value in known)})"


def draw(runs: dict[tuple[str, str], list[dict[str, Any]]], path: Path) -> None:
    """Return over env steps and, below, over minutes: a line a seed, a column a task."""
    tasks = list(dict.fromkeys(task for task, _ in runs))
    figure = Figure(figsize=(4.6 * len(tasks), 6.6), layout="constrained")
    panels = figure.subplots(2, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        methods = {method: seeds for (of, method), seeds in runs.items() if of == task}
        for axis, axes in enumerate(panels[:, column]):
            _draw_curves(axes, methods, axis)
            axes.set(title=task, xlabel=("steps of all envs", "minutes on one core")[axis])
            axes.set_ylabel("return of an episode")
        panels[0, column].ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        panels[0, column].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _draw_curves(axes: Axes, methods: dict[str, list[dict[str, Any]]], axis: int) -> None:
    """The curves of a task's runs over entry ``axis`` of them."""
    for method, seeds in methods.items():
        name, color = METHODS[method]
        for number, record in enumerate(seeds):
            label = f"{name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}" if number == 0 else None
            axes.plot(record["curve"][axis], record["curve"][2], color=color, alpha=0.8, linewidth=1.2, label=label)
    first = next(iter(methods.values()))[0]
    for level, (name, color) in _LEVELS.items():
        if first[level] is not None:
            axes.axhline(first[level], color=color, linestyle="--", linewidth=1, label=name)
    least = max(first["random"], first["none"])
    best = max(max(record["curve"][2]) for seeds in methods.values() for record in seeds)
    axes.set_ylim(least - 0.35 * (best - least), best + 0.1 * (best - least))


def main(arguments: list[str] | None = None) -> None:
    epilog = "What follows -- are settings of the runs: simulators run --tasks ant -- iterations=500"
    parser = study_parser("simulators", __doc__, epilog=epilog)
    parser.add_argument("--methods", nargs="+", choices=SHOWN, default=SHOWN)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    add_engine(parser)
    given, settings = split_settings(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    with user_errors():
        if options.action == "report":
            return report(options.folder, options.results)
        known, seeds, methods = groups(), tuple(options.seeds), tuple(options.methods)
        jobs = [
            job
            for task in options.tasks
            for job in Plan(known[TASKS[task]], methods, (task,), seeds, options.folder, overrides=settings).jobs()
        ]
        complete(jobs, chosen_engine(options), options.folder)


if __name__ == "__main__":
    main()
