"""What an evaluation found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["EvaluationResult"]

_ROW_KEYS = ("task", "return_mean", "return_std", "success", "score", "episodes", "seed")


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationResult(Mapping[str, Any]):
    """Episodes of one policy in one task, E of them.

    The summary numbers are attributes (``result.return_mean``) and mapping entries (``result["return_mean"]``).

    Args:
        task: name of the task or env.
        seed: seed the env was started with.
        returns: undiscounted return of each episode, float64 [E], in raw reward units.
        lengths: steps of each episode, int64 [E].
        successes: success at the last step of each episode, bool [E]; None for a task that has no success.
        scores: normalised score of each episode, float64 [E]; None for an env that is in no task table.
        seconds: wall time of the evaluation.
        frames: uint8 [steps + 1, H, W, 3] of each recorded episode, from its reset to its last state.
    """

    task: str
    seed: int
    returns: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray | None = None
    scores: np.ndarray | None = None
    seconds: float = 0.0
    frames: tuple[np.ndarray, ...] = ()

    @property
    def episodes(self) -> int:
        """Number of episodes E."""
        return len(self.returns)

    @property
    def return_mean(self) -> float:
        """Mean return over the episodes."""
        return float(self.returns.mean())

    @property
    def return_std(self) -> float:
        """Standard deviation of the return over the episodes (divided by E, so 0 for one episode)."""
        return float(self.returns.std())

    @property
    def success(self) -> float | None:
        """Rate of success at the last step, or None for a task that has no success."""
        return None if self.successes is None else float(self.successes.mean())

    @property
    def score(self) -> float | None:
        """Mean normalised score, or None for an env that is in no task table."""
        return None if self.scores is None else float(self.scores.mean())

    def outcome(self) -> dict[str, Any]:
        """The summary numbers alone: return, its deviation, success, score and the number of episodes."""
        return {key: getattr(self, key) for key in ("return_mean", "return_std", "success", "score", "episodes")}

    def summary_row(
        self,
        *,
        behavior_return_mean: float | None = None,
        seconds_extraction: float | None = None,
        seeds: Sequence[Mapping[str, Any]] | None = None,
        baselines: Mapping[str, Mapping[str, Any]] | None = None,
        published: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """The row of this task in ``summary.json``.

        Args:
            behavior_return_mean: mean return of whole episodes in the training data, where there is data.
            seconds_extraction: time spent on extracting the policy.
            seeds: ``seed`` and :meth:`outcome` of each policy, where these episodes are those of several.
            baselines: by name, :meth:`outcome` of each baseline; of several policies with ``seeds`` likewise.
            published: by method, the published score.
        """
        row = {
            "task": self.task,
            "return_mean": self.return_mean,
            "return_std": self.return_std,
            "success": self.success,
            "score": self.score,
            "behavior_return_mean": behavior_return_mean,
            "episodes": self.episodes,
            "seconds_extraction": seconds_extraction,
        }
        more = {"seeds": seeds, "baselines": baselines, "published": published}
        return {**row, **{key: value for key, value in more.items() if value is not None}}

    def __getitem__(self, key: str) -> Any:
        if key not in _ROW_KEYS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(_ROW_KEYS)

    def __len__(self) -> int:
        return len(_ROW_KEYS)
