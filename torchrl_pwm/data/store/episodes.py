"""One recorded episode, its recorder, and its cut into rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_pwm.envs.tasks import TaskSet

__all__ = ["Episode", "EpisodeRecorder"]


class Episode(NamedTuple):
    """Steps of one episode of E steps: observation [E + 1, O'], action [E, A'], reward [E], success bool [E]."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    success: np.ndarray

    def rows(self, table: TaskSet, action_dim: int, row_length: int, draws: np.random.Generator) -> Episode:
        """The episode cut into P rows and padded: [P, L + 1, O], [P, L, A], [P, L], [P, L].

        Entries beyond the task's own action are uniform draws, as in the published data, whatever the policy wrote
        there: a model then learns to ignore them, and no policy can gain by them in imagination.
        """
        steps = len(self.reward)
        start = np.arange(0, steps, row_length)[:, None]
        observation = np.zeros((steps + 1, table.observation_dim), np.float32)
        observation[:, : self.observation.shape[1]] = self.observation
        action = draws.uniform(-1.0, 1.0, (steps, table.action_dim)).astype(np.float32)
        action[:, :action_dim] = self.action[:, :action_dim]
        here = start + np.arange(row_length)
        return Episode(
            observation[start + np.arange(row_length + 1)], action[here], self.reward[here], self.success[here]
        )


class EpisodeRecorder:
    """Steps an env of one task and keeps what happened.

    Args:
        td: TensorDict of the env's reset.
        task: name of the task, for errors.

    Raises:
        ValueError: from :meth:`step`, for a number of it that is not finite; names the entry, the task and the step.

    Attributes:
        td: TensorDict from which the next step starts.
    """

    def __init__(self, td: TensorDictBase, task: str) -> None:
        self.td, self.task = td, task
        self._observation = [td["observation"].numpy(force=True)]
        self._action: list[np.ndarray] = []
        self._reward: list[float] = []
        self._success: list[bool] = []

    def step(self, env: EnvBase, action: torch.Tensor) -> TensorDictBase:
        """One step; returns the ``next`` TensorDict."""
        if not self._action:
            self._refuse("observation", self._observation[0])
        self._refuse("action", action.numpy(force=True))
        following = env.step(self.td.set("action", action.to(self.td["observation"].device)))["next"]
        success = following.get("success", None)
        self._observation.append(following["observation"].numpy(force=True))
        self._action.append(action.numpy(force=True))
        self._reward.append(float(following["reward"]))
        self._refuse("reward", np.asarray(self._reward[-1]))
        self._refuse("next observation", self._observation[-1])
        self._success.append(success is not None and bool(success))
        self.td = following.exclude("reward")
        return following

    def _refuse(self, key: str, value: np.ndarray) -> None:
        if np.isfinite(value).all():
            return
        step = max(len(self._action) - (key in ("reward", "next observation")), 0)
        cause = "the policy: look for a NaN in its weights" if key == "action" else "the simulator, which has diverged"
        raise ValueError(
            f"{key} of task {self.task} must be finite, found {value[~np.isfinite(value)][0]:g} at step {step} of an "
            f"episode that is recorded; it is from {cause}. The episode is not kept"
        )

    def episode(self) -> Episode:
        return Episode(
            np.stack(self._observation).astype(np.float32),
            np.stack(self._action).astype(np.float32),
            np.array(self._reward, np.float32),
            np.array(self._success, bool),
        )
