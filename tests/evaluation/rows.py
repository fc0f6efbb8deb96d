"""Rows of summaries with several seeds, baselines and published scores, and matrices of scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchrl_pwm.envs import MT80


def outcome(task: str, score: float, episodes: int | None = 5) -> dict[str, Any]:
    spec = MT80[task]
    return {
        "return_mean": score * spec.max_return,
        "return_std": 0.1 * spec.max_return,
        "success": score if spec.score_rule == "success" else None,
        "score": score,
        "episodes": episodes,
    }


def seeded(task: str, scores: list[float]) -> dict[str, Any]:
    """The outcome of several policies together, and each by itself."""
    runs = [{"seed": seed, **outcome(task, score)} for seed, score in enumerate(scores)]
    return {**outcome(task, sum(scores) / len(scores), 5 * len(scores)), "seeds": runs}


def full_row(task: str, policy: list[float], cloning: list[float] | None = None, **changes: Any) -> dict[str, Any]:
    """A row with every entry that there may be; the data score 0.3, random actions 0.05."""
    cloned = {} if cloning is None else {"cloning": seeded(task, cloning)}
    return {
        "task": task,
        **seeded(task, policy),
        "behavior_return_mean": 0.3 * MT80[task].max_return,
        "seconds_extraction": 40.0,
        "baselines": {"random": outcome(task, 0.05), **cloned, "data": outcome(task, 0.3, None)},
        "published": {"pwm": 0.9, "tdmpc2": 0.7},
        **changes,
    }


TWO_SEEDS = [full_row("walker-run", [0.2, 0.6], [0.5, 0.3]), full_row("mw-reach", [1.0, 0.8], [0.9, 0.9])]


def scores(seeds: int = 5, tasks: int = 8, seed: int = 0) -> np.ndarray:
    """Uniform scores [seeds, tasks]."""
    return np.random.default_rng(seed).uniform(size=(seeds, tasks))


def selected(row: dict[str, Any], select: str, less: float) -> dict[str, Any]:
    """A row with the last and the best policy, of behaviour cloning too; the other one scores less in each seed."""

    def both(entry: dict[str, Any]) -> dict[str, Any]:
        own = {key: entry[key] for key in ("return_mean", "return_std", "success", "score", "episodes", "seeds")}
        other = seeded(row["task"], [run["score"] - less for run in entry["seeds"]])
        return {**entry, select: own, "last" if select == "best" else "best": other}

    baselines = {**row["baselines"], "cloning": both(row["baselines"]["cloning"])}
    return {**both(row), "baselines": baselines}
