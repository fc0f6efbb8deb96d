"""Rows of a group's methods, tasks and seeds, and the curves of their trainings."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.groups import METHODS
from torchrl_pwm.evaluation.statistics import SELECT

#: Of the CSV. The policy that counts is the last or the best, as select says; both have a return and a score, the best
#: having been chosen on other start states or seeds than these. Seconds are wall-clock ones of one thread, without
#: evaluations; all tasks of a run share the model's. score_data is the mean of the episodes that the run learned from.
COLUMNS = (
    *("group", "method", "task", "seed", "return_mean", "return_std", "success", "score", "episodes"),
    *("select", "return_last", "score_last", "return_best", "score_best", "score_data"),
    *("model_updates", "policy_updates", "transitions", "env_steps", "seconds_model", "seconds_policy"),
    *("ms_per_decision", "ms_per_decision_of_8", "made"),
)
#: The reference that is the mean score of the recorded episodes.
DATA = "the data's behaviour"


@dataclass
class Curve:
    """Scores along a training, of all tasks together or of one.

    Args:
        method, seed: of the run.
        task: of the run; None for the mean of all tasks.
        amount: updates of an offline method, env steps of an online one [n].
        minutes: of training until then [n].
        score: in evaluations along the way, on seeds apart from the final ones [n].
        before_rounds: the amount at which the first round begins; None without rounds.
    """

    method: str
    seed: int
    task: str | None
    amount: np.ndarray
    minutes: np.ndarray
    score: np.ndarray
    before_rounds: float | None = None


@dataclass
class Records:
    """Rows with the keys :data:`COLUMNS`, curves, and what they were made with.

    Args:
        rows: of the CSV.
        parts: curves as each run has them.
        curves: those that are compared: offline, the means over the tasks.
        references: by task, the scores of what is no method: the data's behaviour, a hand-written controller.
        budgets: by run, its updates or steps, in words.
        versions: of the packages that the runs were made with.
        machine: on which they were made, where they say it.
        commit: of the code that made them, likewise.
        commands: by run, the command line of its first seed.
        trust: by task and seed, what the trust probe says of PWM's policy.
        decisions: by method, milliseconds of a decision as measured earlier, see
            :func:`~benchmarks.learning.decisions.measure_decisions`.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    parts: list[Curve] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    budgets: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    commands: dict[str, str] = field(default_factory=dict)
    trust: dict[tuple[str, int], str] = field(default_factory=dict)
    decisions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def add(self, method: str, task: str, seed: int, returns: Sequence[float], **further: Any) -> None:
        """A row, from the returns of its episodes."""
        row = {"method": method, "task": task, "seed": seed, "episodes": len(returns)}
        row |= {"return_mean": float(np.mean(returns)), "return_std": float(np.std(returns))}
        row = {**dict.fromkeys(COLUMNS), **row, **further}
        if select := row["select"]:
            row |= {f"return_{select}": row["return_mean"], f"score_{select}": row["score"]}
        self.rows.append(row)

    def tell(self, versions: Mapping[str, str], machine: Mapping[str, str], commit: str | None) -> None:
        """What further runs were made with; where it differs, all that there was."""
        for kept, further in ((self.versions, versions), (self.machine, machine)):
            for key, value in further.items():
                kept[key] = _joined(kept.get(key), value)
        if commit:
            self.commit = _joined(self.commit, commit)

    def refer_to_data(self) -> None:
        """Makes the mean of what the runs learned from a reference: seeds may have data of different machines."""
        for task in self.tasks():
            known = [row for row in self.rows if row["task"] == task and row["score_data"] is not None]
            levels = {row["seed"]: row["score_data"] for row in known}
            if levels:
                self.references.setdefault(task, {})[DATA] = float(np.mean(list(levels.values())))

    def methods(self) -> list[str]:
        """Those that have rows, in the order of tables."""
        return [method for method in METHODS if any(row["method"] == method for row in self.rows)]

    def tasks(self) -> list[str]:
        """Tasks of the rows."""
        return list(dict.fromkeys(row["task"] for row in self.rows))

    def values(self, method: str, task: str, key: str = "score") -> list[float]:
        """A column of a method's seeds in a task."""
        rows = [row for row in self.rows if (row["method"], row["task"]) == (method, task) and row[key] is not None]
        return [row[key] for row in sorted(rows, key=lambda row: row["seed"])]

    def select(self, method: str) -> str | None:
        """Which of a method's policies counts; None where there is no choice, or another one from run to run."""
        found = {row["select"] for row in self.rows if row["method"] == method}
        return found.pop() if len(found) == 1 else None

    def matrix(self, method: str, key: str = "score") -> np.ndarray | None:
        """Scores [seeds, tasks] of the seeds that have every task; None if there are none."""
        whole = self.by_seed(method, key)
        return np.array(list(whole.values())) if whole else None

    def by_seed(self, method: str, key: str = "score") -> dict[int, list[float]]:
        """By seed, the scores of all tasks, of the seeds that have them all."""
        seeds: dict[int, dict[str, float]] = {}
        for row in self.rows:
            if row["method"] == method and row[key] is not None:
                seeds.setdefault(row["seed"], {})[row["task"]] = row[key]
        tasks = self.tasks()
        whole = {seed: scores for seed, scores in sorted(seeds.items()) if len(scores) == len(tasks)}
        return {seed: [scores[task] for task in tasks] for seed, scores in whole.items()}


def success_and_score(spec: Any, result: Mapping[str, Any]) -> dict[str, Any]:
    """Success rate and mean normalised score of a result's ``returns`` and ``successes``.

    Args:
        spec: of the task.
        result: of an evaluation.
    """
    returns = np.array(result["returns"])
    successes = None if result["successes"] is None else np.array(result["successes"])
    success = None if successes is None else float(successes.mean())
    return {"success": success, "score": float(np.mean(spec.score(returns, successes)))}


def last_and_best(spec: Any, result: Mapping[str, Any], select: str) -> dict[str, Any]:
    """Mean return and score of a result's ``last`` and ``best`` policy, as far as it has them, and which counts."""
    found: dict[str, Any] = {"select": select}
    for which in SELECT:
        if result.get(which):
            found[f"return_{which}"] = float(np.mean(result[which]["returns"]))
            found[f"score_{which}"] = success_and_score(spec, result[which])["score"]
    return found


def date_of(run: Path) -> str:
    return datetime.date.fromtimestamp((run / "summary.json").stat().st_mtime).isoformat()


def _joined(before: str | None, value: str) -> str:
    """Both, each once."""
    known = [] if before is None else before.split("; ")
    return "; ".join([*known, *(part for part in value.split("; ") if part not in known)])
