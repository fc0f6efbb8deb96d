"""Results in tidy form: a row for every method, task and seed, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.learning.groups import METHODS

#: Of the CSV. Seconds are wall-clock ones of one thread, without evaluations; all tasks of a run share the model's.
COLUMNS = (
    *("group", "method", "task", "seed", "return_mean", "return_std", "success", "score", "episodes"),
    *("model_updates", "policy_updates", "transitions", "env_steps", "seconds_model", "seconds_policy"),
    *("ms_per_decision", "ms_per_decision_of_8", "made"),
)


@dataclass
class Curve:
    """Scores along a training, of all tasks together or of one.

    Args:
        method, seed: of the run.
        task: of the run; None for the mean of all tasks.
        amount: updates of an offline method, env steps of an online one [n].
        minutes: of training until then [n].
        score: in evaluations along the way, on seeds apart from the final ones [n].
    """

    method: str
    seed: int
    task: str | None
    amount: np.ndarray
    minutes: np.ndarray
    score: np.ndarray


@dataclass
class Records:
    """Rows with the keys :data:`COLUMNS`, curves, and what they were made with.

    Args:
        rows: of the CSV.
        curves: of all runs.
        references: by task, the scores of what is no method: the data's behaviour, a hand-written controller.
        budgets: by run, what it had, in words.
        versions: of the packages that the runs were made with.
        machine: on which they were made, where they say it.
        commit: of the code that made them, likewise.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    references: dict[str, dict[str, float]] = field(default_factory=dict)
    budgets: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    commit: str | None = None

    def add(self, method: str, task: str, seed: int, returns: Sequence[float], **further: Any) -> None:
        """A row, from the returns of its episodes."""
        found = {"method": method, "task": task, "seed": seed, "episodes": len(returns)}
        found |= {"return_mean": float(np.mean(returns)), "return_std": float(np.std(returns))}
        self.rows.append({**dict.fromkeys(COLUMNS), **found, **further})

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

    def matrix(self, method: str) -> np.ndarray | None:
        """Scores [seeds, tasks] of the seeds that have every task; None if there are none."""
        tasks = self.tasks()
        found = {
            (row["task"], row["seed"]): row["score"]
            for row in self.rows
            if row["method"] == method and row["score"] is not None
        }
        seeds = sorted({seed for _, seed in found})
        whole = [
            [found[task, seed] for task in tasks] for seed in seeds if all((task, seed) in found for task in tasks)
        ]
        return np.array(whole) if whole else None
