"""Result of an evaluation, and the statistics of the episodes that it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey

from torchrl_pwm.envs.tasks import TaskSpec

__all__ = ["EpisodeStatistics", "EvaluationResult"]

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
        frames: uint8 [steps + 1, H, W, 3] of each recorded episode, from its reset to its last state; where only some
            steps were recorded, of these.
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

    def record(self) -> dict[str, Any]:
        """What a JSON file keeps of the episodes: seed, returns and successes."""
        successes = None if self.successes is None else self.successes.tolist()
        return {"seed": self.seed, "returns": self.returns.tolist(), "successes": successes}

    @classmethod
    def from_records(cls, spec: TaskSpec, records: Sequence[Mapping[str, Any]]) -> EvaluationResult:
        """The episodes of one :meth:`record` of a task, or of several together."""
        returns, successes = np.concatenate([record["returns"] for record in records]), None
        if records[0]["successes"] is not None:
            successes = np.concatenate([record["successes"] for record in records]).astype(bool)
        return cls(
            task=spec.name,
            seed=records[0]["seed"],
            returns=returns,
            lengths=np.full(len(returns), spec.episode_length),
            successes=successes,
            scores=np.asarray(spec.score(returns, successes)),
        )

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
        last: Mapping[str, Any] | None = None,
        best: Mapping[str, Any] | None = None,
        trust: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The row of this task in ``summary.json``.

        Args:
            behavior_return_mean: mean return of whole episodes in the training data, where there is data.
            seconds_extraction: time spent on extracting the policy.
            seeds: ``seed`` and :meth:`outcome` of each policy, where these episodes are those of several.
            baselines: by name, :meth:`outcome` of each baseline; of several policies with ``seeds`` likewise.
            published: by method, the published score.
            last, best: :meth:`outcome` of the last and of the best policy, where both were evaluated; these episodes
                are those of the one that counts. Of several policies with ``seeds`` likewise.
            trust: what the trust probe says of these policies.
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
        more |= {"last": last, "best": best, "trust": trust}
        return {**row, **{key: value for key, value in more.items() if value is not None}}

    def __getitem__(self, key: str) -> Any:
        if key not in _ROW_KEYS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(_ROW_KEYS)

    def __len__(self) -> int:
        return len(_ROW_KEYS)


class EpisodeStatistics:
    """Returns, lengths and successes of the first episodes of N envs; episode k is number k // N of env k % N."""

    def __init__(
        self, label: str, episodes: int, num_envs: int, record: int, record_steps: Collection[int] | None = None
    ) -> None:
        self.label, self.episodes, self.num_envs, self.record = label, episodes, num_envs, record
        self.record_steps = record_steps
        self.finished = [0] * num_envs
        self.steps = [0] * num_envs
        self.running = torch.zeros(num_envs, dtype=torch.float64)
        self.results: dict[int, tuple[float, int, bool | None]] = {}
        self.pictures: dict[int, list[np.ndarray]] = {}

    @property
    def complete(self) -> bool:
        return len(self.results) == self.episodes

    def episode(self, env: int) -> int:
        return self.finished[env] * self.num_envs + env

    def active(self) -> list[int]:
        """Envs whose present episode counts."""
        return [env for env in range(self.num_envs) if self.episode(env) < self.episodes]

    def check_finite(self, td: TensorDictBase, keys: Sequence[NestedKey], kind: str) -> None:
        """Raises ValueError if an entry of an episode that counts is not finite."""
        for key in keys:
            value = td.get(key, None)
            if value is None or not value.is_floating_point() or bool(value.isfinite().all()):
                continue
            finite = value.reshape(self.num_envs, -1).isfinite().all(-1).tolist()
            for env in self.active():
                if not finite[env]:
                    raise ValueError(
                        f"{kind} {key!r} of {self.label} is not finite in episode {self.episode(env)} at step "
                        f"{self.steps[env]}: {value.reshape(self.num_envs, -1)[env].tolist()}; evaluation stops here. "
                        "Look for a diverging simulation, or a NaN in the weights of the policy or world model"
                    )

    def _recorded(self, env: int) -> bool:
        wanted = self.record_steps
        return self.episode(env) < self.record and (wanted is None or self.steps[env] in wanted)

    def add_frames(self, state: TensorDictBase) -> None:
        pixels = state.get("pixels")
        pixels = pixels.reshape(self.num_envs, *pixels.shape[-3:])
        for env in self.active():
            if self._recorded(env):
                self.pictures.setdefault(self.episode(env), []).append(pixels[env].cpu().numpy().copy())

    def add_step(
        self,
        step: TensorDictBase,
        reward_key: NestedKey,
        done_key: NestedKey,
        success_key: NestedKey,
        last_keys: Sequence[NestedKey] = (),
    ) -> int:
        """Counts one step of every env; returns how many episodes it completed.

        The entries ``last_keys`` of a step that ends episodes must be finite: no policy reads them any more.
        """
        after = step.get("next")
        reward = after.get(reward_key)
        if reward.numel() != self.num_envs:
            raise ValueError(
                f"evaluation needs one reward per env, of shape [{self.num_envs}, 1]; {self.label} writes "
                f"{tuple(reward.shape)} at {reward_key!r}. Add a transform that reduces it to one number"
            )
        self.check_finite(after, [reward_key], "reward")
        self.running += reward.reshape(self.num_envs).double().cpu()
        done = after.get(done_key).reshape(self.num_envs).tolist()
        if any(done):
            self.check_finite(after, last_keys, "last observation")
        success = after.get(success_key, None)
        won = None if success is None else success.reshape(self.num_envs).bool().tolist()
        active = self.active()
        self.steps = [count + 1 for count in self.steps]
        completed = 0
        for env in (env for env in range(self.num_envs) if done[env]):
            if env in active:
                episode = self.episode(env)
                outcome = None if won is None else bool(won[env])
                self.results[episode] = (self.running[env].item(), self.steps[env], outcome)
                if self._recorded(env):
                    last = after.get("pixels").reshape(self.num_envs, *after.get("pixels").shape[-3:])[env]
                    self.pictures.setdefault(episode, []).append(last.cpu().numpy().copy())
                completed += 1
            self.finished[env] += 1
            self.steps[env] = 0
            self.running[env] = 0.0
        return completed

    def check_length(self, max_steps: int) -> None:
        for env in self.active():
            if self.steps[env] >= max_steps:
                raise RuntimeError(
                    f"episode {self.episode(env)} of {self.label} has not ended after {max_steps} steps; give the env "
                    "a time limit (torchrl.envs.StepCounter(max_steps=...)) or raise max_steps"
                )

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns, lengths and successes by episode."""
        returns, lengths, outcomes = zip(*(self.results[episode] for episode in range(self.episodes)))
        successes = None if None in outcomes else np.array(outcomes, dtype=bool)
        return np.array(returns, dtype=np.float64), np.array(lengths, dtype=np.int64), successes

    def frames(self) -> tuple[np.ndarray, ...]:
        kept = (self.pictures.get(episode, []) for episode in range(self.record))
        return tuple(np.stack(pictures) if pictures else np.empty((0, 0, 0, 3), np.uint8) for pictures in kept)
