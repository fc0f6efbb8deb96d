"""Rows and learning curves of a group, read from its finished runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from benchmarks.learning.earlier import add_earlier
from benchmarks.learning.groups import METHODS, Group
from benchmarks.learning.offline_records import join_curves, read_offline
from benchmarks.learning.plans import RUNS, SCRIPTS
from benchmarks.learning.rows import Curve, Records
from torchrl_pwm.evaluation import read_metrics
from torchrl_pwm.evaluation.statistics import SELECT
from torchrl_pwm.runs.saved import read_config


def read_records(
    group: Group,
    folder: Path,
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    earlier: Records | None = None,
) -> Records:
    """Rows and curves of the finished runs below ``folder``.

    Args:
        group: of the runs.
        folder: theirs.
        methods, tasks: those that are wanted; default: all.
        earlier: of an offline group, what further runs had, which are not in the folder.

    Raises:
        FileNotFoundError: if no run is finished.
    """
    records = Records()
    wanted, known = list(methods or group.methods), list(tasks or group.tasks)
    names: Any = RUNS.values() if group.offline else SCRIPTS
    for file in sorted(folder.rglob("summary.json")):
        run, name = file.parent, file.relative_to(folder).parts[0]
        summary = json.loads(file.read_text())
        _read_origin(records, run, name, summary)
        if name in names and (group.offline or summary["task"] in known):
            config: Any = read_config(run)
            (read_offline if group.offline else _read_online)(records, run, name, config, summary)
    if earlier is not None:
        add_earlier(records, earlier)
    records.refer_to_data()
    records.curves = join_curves(records.parts, known) if group.offline else records.parts
    rows = [{**row, "group": group.name} for row in records.rows if row["method"] in wanted and row["task"] in known]
    order = {method: place for place, method in enumerate(METHODS)}
    records.rows = sorted(rows, key=lambda row: (order[row["method"]], known.index(row["task"]), row["seed"]))
    records.curves = [curve for curve in records.curves if curve.method in wanted and curve.task in (None, *known)]
    if not records.rows:
        raise FileNotFoundError(
            f"no finished run of {', '.join(wanted)} in {folder}: "
            f"python -m benchmarks.learning.suite run --group {group.name} makes them"
        )
    if not group.offline:
        _normalize(records, group.scale)
    return records


def _read_origin(records: Records, run: Path, name: str, summary: Mapping[str, Any]) -> None:
    """Versions, machine, commit and command; where runs differ, all that there were, and the first command."""
    job = run / "job.json"
    made = json.loads(job.read_text()) if job.exists() else {}
    records.tell(summary.get("versions") or {}, made.get("machine") or {}, made.get("commit"))
    if made:
        command = " ".join(["python", made["script"], *made["settings"]])
        records.commands.setdefault(name, re.sub(r"data\.root=\S+", "data.root=DIR", command))


def _read_online(records: Records, run: Path, name: str, config: Any, summary: Mapping[str, Any]) -> None:
    """One task: the final evaluation of the policy and of what it is compared with, and the curve."""
    task, seed, outcomes, metrics = summary["task"], summary["seed"], summary["outcomes"], read_metrics(run)
    seconds = float(metrics["training_seconds"][1][-1]) if "training_seconds" in metrics else summary["seconds"]
    common = {"env_steps": summary["steps"], "made": summary["made"], "policy_updates": _policy_updates(name, config)}
    common |= {"seconds_model": 0.0, "seconds_policy": seconds}
    # The first runs of SHAC had no choice: the last one counted.
    common["select"] = config.get("select", "last")
    for method, policy in ((name, "policy"), ("tdmpc2_prior", "policy without planning")):
        if policy in outcomes:
            known = {which: outcomes[f"{which} {policy}"] for which in SELECT if f"{which} {policy}" in outcomes}
            both = {f"return_{which}": outcome["return_mean"] for which, outcome in known.items()}
            records.add(method, task, seed, outcomes[policy]["returns"], **common, **both)
    if not any((row["method"], row["task"], row["seed"]) == ("random", task, seed) for row in records.rows):
        records.add("random", task, seed, outcomes["random actions"]["returns"])
    levels = records.references.setdefault(task, {})
    for level in ("no action", "hand-written controller"):
        if level in outcomes:
            levels[level] = outcomes[level]["return_mean"]
    records.parts.append(Curve(name, seed, task, *env_steps_curve(metrics, summary)))
    records.budgets[f"{name}, {task}"] = f"{summary['iterations']} iterations, {summary['steps']:,} env steps"


def env_steps_curve(metrics: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    """Env steps, minutes and returns of the evaluations along an online run."""
    x, y = (np.asarray(values, dtype=float) for values in metrics["real_return"])
    share = x / summary["iterations"]
    # SHAC's windows have as many steps each; others say how many they took, those of the warm-up included.
    steps = np.interp(x, *metrics["env_steps"]) if "env_steps" in metrics else share * summary["steps"]
    timed = metrics.get("training_seconds")
    seconds = share * summary["seconds"] if timed is None else np.interp(x, *timed)
    return steps, seconds / 60, y


def _policy_updates(name: str, config: Any) -> int:
    each = {"pwm": "online.policy_updates", "tdmpc2": "online.updates", "sac": "updates"}
    if name == "ppo":
        return config.iterations * config.epochs * -(-config.env.num_envs * config.collector.steps // config.batch_size)
    return config.iterations * (OmegaConf.select(config, each[name]) if name in each else 1)


def progress_to_controller(outcomes: Mapping[str, Mapping[str, Any]]) -> float:
    """Share of the way from the better of random actions and none (0) to the hand-written controller (1).

    Args:
        outcomes: of an online run's summary.
    """
    low = max(outcomes["random actions"]["return_mean"], outcomes["no action"]["return_mean"])
    return (outcomes["policy"]["return_mean"] - low) / (outcomes["hand-written controller"]["return_mean"] - low)


def _normalize(records: Records, known_scale: float | None) -> None:
    """Scores of returns: 0 is the better of random actions and none, 1 the controller or else the best method.

    With a known scale, 0 is a return of 0 and 1 one of the scale.
    """
    for task in records.tasks():
        levels, low, scale = records.references.get(task, {}), 0.0, known_scale
        if scale is None:
            returns = {method: records.values(method, task, "return_mean") for method in records.methods()}
            means = {method: float(np.mean(values)) for method, values in returns.items() if values}
            low = max(means.get("random", -np.inf), levels["no action"])
            top = levels.get("hand-written controller", -np.inf)
            scale = (top if top > low else max(means.values())) - low or 1.0
        for row in (row for row in records.rows if row["task"] == task):
            row["score"] = (row["return_mean"] - low) / scale
            for which in SELECT:
                if row[f"return_{which}"] is not None:
                    row[f"score_{which}"] = (row[f"return_{which}"] - low) / scale
        for curve in records.curves:
            if curve.task == task:
                curve.score = (curve.score - low) / scale
        records.references[task] = {name: (value - low) / scale for name, value in levels.items()}
