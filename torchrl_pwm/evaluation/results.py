"""Results of an evaluation, and the statistics of the episodes they are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey

__all__ = ["EpisodeTally", "EvaluationResult"]

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


class EpisodeTally:
    """Adds up the first episodes of each of N rows; episode k is number k // N of row k % N."""

    def __init__(self, label: str, episodes: int, rows: int, record: int) -> None:
        self.label, self.episodes, self.rows, self.record = label, episodes, rows, record
        self.finished = [0] * rows
        self.steps = [0] * rows
        self.running = torch.zeros(rows, dtype=torch.float64)
        self.results: dict[int, tuple[float, int, bool | None]] = {}
        self.pictures: dict[int, list[np.ndarray]] = {}

    @property
    def complete(self) -> bool:
        return len(self.results) == self.episodes

    def episode(self, row: int) -> int:
        return self.finished[row] * self.rows + row

    def active(self) -> list[int]:
        """Rows whose present episode counts."""
        return [row for row in range(self.rows) if self.episode(row) < self.episodes]

    def check_finite(self, td: TensorDictBase, keys: Sequence[NestedKey], kind: str) -> None:
        for key in keys:
            value = td.get(key)
            if not value.is_floating_point() or bool(value.isfinite().all()):
                continue
            finite = value.reshape(self.rows, -1).isfinite().all(-1).tolist()
            for row in self.active():
                if not finite[row]:
                    raise ValueError(
                        f"{kind} {key!r} of {self.label} is not finite in episode {self.episode(row)} at step "
                        f"{self.steps[row]}: {value.reshape(self.rows, -1)[row].tolist()}; evaluation stops here. "
                        "Look for a diverging simulation, or a NaN in the weights of the policy or world model"
                    )

    def add_frames(self, state: TensorDictBase) -> None:
        pixels = state.get("pixels")
        pixels = pixels.reshape(self.rows, *pixels.shape[-3:])
        for row in self.active():
            if self.episode(row) < self.record:
                self.pictures.setdefault(self.episode(row), []).append(pixels[row].cpu().numpy().copy())

    def add_step(self, step: TensorDictBase, reward_key: NestedKey, done_key: NestedKey, success_key: NestedKey) -> int:
        """Counts one step of every row; returns how many episodes it completed."""
        after = step.get("next")
        reward = after.get(reward_key)
        if reward.numel() != self.rows:
            raise ValueError(
                f"evaluation needs one reward per env, of shape [{self.rows}, 1]; {self.label} writes "
                f"{tuple(reward.shape)} at {reward_key!r}. Add a transform that reduces it to one number"
            )
        self.check_finite(after, [reward_key], "reward")
        self.running += reward.reshape(self.rows).double().cpu()
        done = after.get(done_key).reshape(self.rows).tolist()
        success = after.get(success_key, None)
        won = None if success is None else success.reshape(self.rows).bool().tolist()
        active = self.active()
        self.steps = [count + 1 for count in self.steps]
        completed = 0
        for row in (row for row in range(self.rows) if done[row]):
            if row in active:
                episode = self.episode(row)
                outcome = None if won is None else bool(won[row])
                self.results[episode] = (self.running[row].item(), self.steps[row], outcome)
                if episode < self.record:
                    last = after.get("pixels").reshape(self.rows, *after.get("pixels").shape[-3:])[row]
                    self.pictures[episode].append(last.cpu().numpy().copy())
                completed += 1
            self.finished[row] += 1
            self.steps[row] = 0
            self.running[row] = 0.0
        return completed

    def check_length(self, max_steps: int) -> None:
        for row in self.active():
            if self.steps[row] >= max_steps:
                raise RuntimeError(
                    f"episode {self.episode(row)} of {self.label} has not ended after {max_steps} steps; give the env "
                    "a time limit (torchrl.envs.StepCounter(max_steps=...)) or raise max_steps"
                )

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns, lengths and successes by episode."""
        rows = [self.results[episode] for episode in range(self.episodes)]
        returns = np.array([row[0] for row in rows], dtype=np.float64)
        lengths = np.array([row[1] for row in rows], dtype=np.int64)
        outcomes = [row[2] for row in rows]
        return returns, lengths, None if None in outcomes else np.array(outcomes, dtype=bool)

    def frames(self) -> tuple[np.ndarray, ...]:
        return tuple(np.stack(self.pictures[episode]) for episode in range(self.record))
