"""Which steps of a batched env belong to which episode, and which episodes count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey

__all__ = ["EpisodeTally"]


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
