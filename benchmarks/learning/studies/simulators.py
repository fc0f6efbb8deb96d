"""SHAC and online PWM in simulators, three seeds each: runs, table and curves.

    python -m benchmarks.learning.studies.simulators run                      # what is missing; resumable
    python -m benchmarks.learning.studies.simulators run --tasks ant --methods shac
    python -m benchmarks.learning.studies.simulators run --tasks ant --methods pwm -- \\
        pwm=newton/ant_recorded pretraining.data=steps
    python -m benchmarks.learning.studies.simulators report           # benchmarks/results/simulators.{md,csv,png}

Each run is one of ``examples/`` with its own settings for the task, on one thread. A task counts as solved where the
mean return is at least nine tenths of the way from the better of random actions and none to the hand-written
controller; on the ant, which has no controller, the forward progress of an episode is compared with random actions'.
The group closed_form of :mod:`benchmarks.learning.suite`, which compares more methods, reads these runs too: --folder
runs/simulators.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensordict import TensorDictBase
from torchrl.envs import Transform, TransformedEnv

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from benchmarks.learning.groups import METHODS
from benchmarks.learning.jobs import Job, run_jobs
from benchmarks.learning.methods.online import SCRIPTS, run_folder
from benchmarks.learning.readers import env_steps_curve
from benchmarks.machine import processor
from torchrl_pwm import evaluate_policy
from torchrl_pwm.evaluation import read_metrics
from torchrl_pwm.runs.load import load_policy
from torchrl_pwm.runs.pwm_online import open_steps

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "runs" / "simulators"
SHOWN = ("shac", "pwm")
ENVS = {
    "cartpole_swingup": "analytic/cartpole_swingup",
    "double_pendulum": "analytic/double_pendulum",
    "ant": "newton/ant",
}
SEEDS = (0, 1, 2)
# Of the ant's observation: the torso's forward speed [m/s]; a step lasts 1/60 s.
FORWARD_SPEED, STEP, ANT_ACTIONS = 5, 1 / 60, 8


class ForwardProgress(Transform):
    """The metres that a step leads forward, in place of its reward."""

    def __init__(self) -> None:
        super().__init__(in_keys=["reward"], out_keys=["reward"])

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        speed = next_tensordict["observation"][..., FORWARD_SPEED, None]
        return next_tensordict.set("reward", speed * STEP)


def run(folder: Path, methods: Sequence[str], tasks: Sequence[str], further: Sequence[str]) -> None:
    """Every run that is not there yet, one after the other, or what is left of it."""
    jobs = [
        Job(
            name=f"{method}/{task}/{seed}",
            script=SCRIPTS[method],
            settings=(f"env={ENVS[task]}", f"seed={seed}", *further),
            folder=run_folder(folder.absolute(), method, task, seed),
        )
        for task in tasks
        for method in methods
        for seed in SEEDS
    ]
    if failures := run_jobs(jobs, workers=1):
        raise SystemExit(f"{len(failures)} runs are missing; the same command goes on with them.")


def uniform_actions(seed: int) -> Any:
    """Uniform actions in [-1, 1] for the ant."""
    generator = torch.Generator().manual_seed(seed)

    def act(state: TensorDictBase) -> TensorDictBase:
        return state.set("action", 2 * torch.rand(*state.batch_size, ANT_ACTIONS, generator=generator) - 1)

    return act


def forward_progress(policy: Any, config: Any) -> float:
    """Mean forward progress [m] of the episodes of the final evaluation."""
    count, seed = config.evaluation.episodes, config.evaluation.seed
    env = TransformedEnv(instantiate(config.env, num_envs=count), ForwardProgress())
    return evaluate_policy(policy, env, episodes=count, seed=seed, task=config.task).return_mean


def read_run(folder: Path, method: str) -> dict[str, Any]:
    """What the table and the curves need of a run."""
    summary = json.loads((folder / "summary.json").read_text())
    config: Any = OmegaConf.load(folder / "config.yaml")
    found = {name: outcome["return_mean"] for name, outcome in summary["outcomes"].items()}
    record = {"method": method, "task": summary["task"], "seed": summary["seed"], "return": found["policy"]}
    record |= {key: summary[key] for key in ("steps", "seconds", "iterations", "made")}
    record |= {"random": found["random actions"], "none": found["no action"]}
    record["controller"] = found.get("hand-written controller")
    if record["task"] == "ant":
        record["progress"] = forward_progress(load_policy(folder)[0], config)
        record["random progress"] = forward_progress(uniform_actions(record["seed"]), config)
    taken, _, score = env_steps_curve(read_metrics(folder), summary)
    record |= {"recorded": 0, "cloned": found.get("cloned behaviour")}
    if "pretraining" in config and config.pretraining.data:
        record["recorded"] = open_steps(config.pretraining.data).numel()
        # What such a run learns from is not what it steps through.
        taken = taken * (summary["iterations"] * config.online.policy_updates / summary["steps"])
    record["curve"] = (taken.tolist(), score.tolist())
    return record


def panel(record: dict[str, Any]) -> tuple[str, str]:
    """Title of the panel that shows the record, and its horizontal axis."""
    if record["recorded"]:
        return f"{record['task']}, from {record['recorded'] / 1e6:.1f} M recorded steps", "policy updates"
    return record["task"], "steps of the env, all rows"


def threshold(record: dict[str, Any]) -> float | None:
    """The return from which the task counts as solved."""
    if record["controller"] is None:
        return None
    best = max(record["random"], record["none"])
    return best + 0.9 * (record["controller"] - best)


def report(folder: Path, results: Path) -> None:
    """Writes the table, the rows behind it and the picture."""
    records = [
        read_run(summary.parent, method)
        for task in ENVS
        for method in SHOWN
        for summary in sorted((folder / method / task).glob("seed-*/summary.json"))
    ]
    if not records:
        raise SystemExit(f"no finished run in {folder}: python -m benchmarks.learning.studies.simulators run")
    fields = [name for name in max(records, key=len) if name != "curve"]
    with open(results / "simulators.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["task"], record["method"]), []).append(record)
    table = _table(groups)
    draw(groups, results / "simulators.png")
    (results / "simulators.md").write_text(_PAGE.format(table=table, made=records[-1]["made"], machine=processor()))
    print(table)


def _table(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    lines = [
        "| task | method | return, mean of the seeds (each) | controller | random | none | solved from | seeds solved |"
        " steps | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, method), rows in groups.items():
        returns = [row["return"] for row in rows]
        least = threshold(rows[0])
        if least is None:
            metres = [row["progress"] for row in rows]
            first = np.mean([row["random progress"] for row in rows])
            solved = f"{np.mean(metres):.1f} m forward ({', '.join(f'{m:.1f}' for m in metres)}); random {first:.2f} m"
            ends = ["-", f"{rows[0]['random']:.0f}", f"{rows[0]['none']:.0f}", "-", solved]
        else:
            count = sum(value >= least for value in returns)
            ends = [f"{rows[0][name]:.0f}" for name in ("controller", "random", "none")]
            ends += [f"{least:.0f}", f"{count} of {len(rows)}"]
        each = ", ".join(f"{value:.0f}" for value in returns)
        cells = [task, METHODS[method][0], f"{np.mean(returns):.0f} ({each})", *ends]
        if rows[0]["recorded"]:
            clones = [f"{row['cloned']:.0f}" for row in rows if row["cloned"] is not None]
            cells[1] += " from recorded steps" + (f"; their clones {', '.join(clones)}" if clones else "")
            cells.append(f"{rows[0]['recorded'] / 1e6:.2f} M recorded")
        else:
            cells.append(f"{rows[0]['steps'] / 1e6:.2f} M")
        cells.append(f"{np.mean([row['seconds'] for row in rows]) / 60:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(groups: dict[tuple[str, str], list[dict[str, Any]]], path: Path) -> None:
    """Return over steps of the env or policy updates, a line a seed, a panel a task."""
    shown: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for (_, method), rows in groups.items():
        shown.setdefault(panel(rows[0]), {})[method] = rows
    figure, panels = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 3.6), squeeze=False, layout="constrained")
    for axes, ((title, axis), methods) in zip(panels[0], shown.items()):
        for method, rows in methods.items():
            name, color = METHODS[method][:2]
            for number, row in enumerate(rows):
                label = f"{name}, {len(rows)} seed{'s' * (len(rows) > 1)}" if number == 0 else None
                axes.plot(*row["curve"], color=color, alpha=0.8, linewidth=1.2, label=label)
        first = next(iter(methods.values()))[0]
        for level, (name, color) in _LEVELS.items():
            if first[level] is not None:
                axes.axhline(first[level], color=color, linestyle="--", linewidth=1, label=name)
        least = max(first["random"], first["none"])
        best = max(max(row["curve"][1]) for rows in methods.values() for row in rows)
        axes.set_ylim(least - 0.35 * (best - least), best + 0.1 * (best - least))
        axes.set(title=title, xlabel=axis, ylabel="return of an episode")
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


_LEVELS = {
    "controller": ("hand-written controller", "tab:green"),
    "random": ("random actions", "tab:gray"),
    "none": ("no action", "tab:brown"),
    "cloned": ("clone of seed 0", "tab:olive"),
}

_PAGE = """# SHAC and online PWM in simulators

Made with `python -m benchmarks.learning.studies.simulators run` and `report`, {made}; {machine}; one thread a run, no
GPU. Returns are means over 64 episodes of the mean action, from start states that training does not see. A task counts
as solved where the mean return is at least nine tenths of the way from the better of random actions and none to the
hand-written controller.

{table}

![curves](simulators.png)

The return of 16 episodes during training, over the steps that all rows of the env took together, or over policy
updates where a frozen model of recorded steps is all that is learnt from; such a policy begins as a clone of the
recorded behaviour. Every line is one seed; what is far below the better of random actions and none is cut off.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="What follows -- are settings of the runs: simulators run --tasks ant -- iterations=500",
    )
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--methods", nargs="+", choices=SHOWN, default=SHOWN)
    parser.add_argument("--tasks", nargs="+", choices=list(ENVS), default=list(ENVS))
    parser.add_argument("--folder", type=Path, default=RUNS, help="of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of the report")
    mark = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, further = parser.parse_args(sys.argv[1:mark]), sys.argv[mark + 1 :]
    if arguments.what == "run":
        run(arguments.folder, arguments.methods, arguments.tasks, further)
    else:
        report(arguments.folder, arguments.results)


if __name__ == "__main__":
    main()
