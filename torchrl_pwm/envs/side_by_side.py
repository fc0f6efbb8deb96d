"""Episodes of one task side by side, which are those that a single env plays one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_pwm.envs.multitask import TaskSimulation, checked_seed, make_simulation
from torchrl_pwm.envs.tasks import TaskSet, TaskSpec, get_task_set, get_task_spec

__all__ = ["SideBySideEnv", "TaskSimulators"]


class TaskSimulators:
    """The simulators of one task, built where they are first needed and kept, and envs of them.

    Args:
        task (str): name of the task.

    Examples:
        >>> from torchrl_pwm.envs.side_by_side import TaskSimulators
        >>> simulators = TaskSimulators("pendulum-swingup")
        >>> simulators.env(2).rollout(3)["observation"].shape
        torch.Size([2, 3, 3])
        >>> len(simulators.env(1).rollout(3)), len(simulators)
        (1, 2)
    """

    def __init__(self, task: str) -> None:
        self.task = task
        self._simulations: list[TaskSimulation] = []

    def __len__(self) -> int:
        return len(self._simulations)

    def env(
        self,
        num_envs: int,
        *,
        task_set: str | TaskSet | None = None,
        seed: int = 0,
        device: torch.device | str | int | None = None,
    ) -> SideBySideEnv:
        """An env of the first ``num_envs`` simulators; of the envs made here, one at a time can be in use.

        Raises:
            ValueError: for a task that is unknown or not in the set.
            ImportError: if the simulator is not installed.
        """
        table = None if task_set is None else get_task_set(task_set)
        spec = get_task_spec(self.task) if table is None else table[self.task]
        while len(self) < num_envs:
            self._simulations.append(make_simulation(spec, seed=0))
        env = SideBySideEnv(spec, self._simulations[:num_envs], task_set=table, device=device)
        env._set_seed(seed)  # set_seed would seed torch's global generator too
        return env

    def close(self) -> None:
        """Frees the simulators."""
        while self._simulations:
            self._simulations.pop().close()


class SideBySideEnv(EnvBase):
    """N episodes of a task at once, as a TorchRL env of batch size [N] with the keys of
    :func:`~torchrl_pwm.make_task_env`, without pixels.

    All simulators draw from one generator, in their order, at each reset. Since a task draws at its resets alone, and
    all its episodes are of one length, episode k of one env of the same seed is here number ``k // N`` of env
    ``k % N``, bit for bit under the same actions. One policy call serves N simulator steps.

    Args:
        spec: row of the task.
        simulations: N simulators of the task, seeded by ``set_seed``.
        task_set: set whose sizes are padded to, or None for the task's own sizes.
        device: device of all tensors; the simulation itself runs on the CPU.
    """

    def __init__(
        self,
        spec: TaskSpec,
        simulations: Sequence[TaskSimulation],
        *,
        task_set: TaskSet | None = None,
        device: torch.device | str | int | None = None,
    ) -> None:
        super().__init__(device=device, batch_size=torch.Size([len(simulations)]))
        self.task_spec, self.task_set, self._simulations = spec, task_set, list(simulations)
        self._steps: int | None = None
        sizes = spec if task_set is None else task_set
        self._observation_dim, self._action_dim = sizes.observation_dim, sizes.action_dim
        self._constants: dict[str, torch.Tensor] = {}
        if task_set is not None:
            used = torch.arange(self._action_dim, device=device) < spec.action_dim
            self._constants["task"] = torch.full(self.batch_size, spec.index, device=device)
            self._constants["action_mask"] = used.expand(*self.batch_size, -1).clone()
        self._make_specs()

    def _make_specs(self) -> None:
        batch = self.batch_size
        entries: dict[str, Any] = {"observation": Unbounded((*batch, self._observation_dim), dtype=torch.float32)}
        if self.task_spec.score_rule == "success":
            entries["success"] = Binary(1, shape=(*batch, 1), dtype=torch.bool)
        if self.task_set is not None:
            entries["task"] = Categorical(len(self.task_set), shape=batch, dtype=torch.int64)
            entries["action_mask"] = Binary(self._action_dim, shape=(*batch, self._action_dim), dtype=torch.bool)
        self.observation_spec = Composite(entries, shape=batch, device=self.device)
        action = (*batch, self._action_dim)
        self.action_spec = Bounded(-1.0, 1.0, action, dtype=torch.float32, device=self.device)
        self.reward_spec = Unbounded((*batch, 1), dtype=torch.float32, device=self.device)
        flags = {key: Binary(1, shape=(*batch, 1), dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=batch, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        first, *others = self._simulations
        first.seed(checked_seed(seed))
        for other in others:
            other.draw_as(first)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is not None and not bool(mask.all()):
            raise ValueError("Episodes side by side are drawn in order: reset all envs together, not some of them.")
        observations = [simulation.reset() for simulation in self._simulations]
        self._steps = 0
        return self._pack(observations, [False] * len(observations))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._steps is None:
            raise RuntimeError(f"{self.task_spec.name} was stepped before its first reset; call reset()")
        spec, action = self.task_spec, tensordict.get("action")
        if action.shape != (*self.batch_size, self._action_dim):
            raise ValueError(
                f"{spec.name} takes actions of shape {(*self.batch_size, self._action_dim)}, found "
                f"{tuple(action.shape)}"
            )
        used = action.detach().cpu().numpy()[:, : spec.action_dim].astype(np.float64)
        if not math.isfinite(used.sum()):
            raise ValueError(
                f"{spec.name} got the actions {used.tolist()} at step {self._steps} of the episodes; actions must be "
                "finite: look for a NaN in the policy or its input"
            )
        np.clip(used, -1.0, 1.0, out=used)
        outcomes = [simulation.step(row) for simulation, row in zip(self._simulations, used)]
        observations, rewards, successes = zip(*outcomes)
        self._steps += 1
        out = self._pack(observations, [bool(success) for success in successes])
        return out.set("reward", torch.tensor(rewards, dtype=torch.float32, device=self.device).unsqueeze(-1))

    def _pack(self, observations: Sequence[np.ndarray], successes: Sequence[bool]) -> TensorDict:
        """The entries that reset and step share."""
        padded = np.zeros((len(observations), self._observation_dim), dtype=np.float32)
        padded[:, : observations[0].size] = observations
        entries = {"observation": torch.from_numpy(padded)}
        for key, constant in self._constants.items():
            entries[key] = constant.clone()
        if self.task_spec.score_rule == "success":
            entries["success"] = torch.tensor(successes).unsqueeze(-1)
        over = self._steps is not None and self._steps >= self.task_spec.episode_length
        truncated = torch.full((*self.batch_size, 1), over)
        entries |= {"done": truncated, "terminated": torch.zeros_like(truncated), "truncated": truncated.clone()}
        return TensorDict(entries, batch_size=self.batch_size, device=self.device)

    def __repr__(self) -> str:
        return f"SideBySideEnv({self.task_spec.name!r}, {len(self._simulations)} episodes, device={self.device})"
