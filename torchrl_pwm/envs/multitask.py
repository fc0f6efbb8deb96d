"""Task environments in TorchRL form: padding, action masks, task ids, and recorded states."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_pwm.envs.batched import batched_env
from torchrl_pwm.envs.tasks import TaskSet, TaskSpec, get_task_set, get_task_spec

__all__ = ["TaskEnv", "TaskSimulation", "make_task_env", "make_task_envs", "raw_reward", "restore_state"]


class TaskSimulation(Protocol):
    """The simulator of a :class:`TaskEnv`: numpy in and out, sizes without padding."""

    def seed(self, seed: int) -> None: ...
    def draw_as(self, other: Any) -> None: ...
    def reset(self) -> np.ndarray: ...
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool | None]: ...
    def restore(self, record: Mapping[str, Any]) -> np.ndarray: ...
    def raw_reward(self) -> float: ...
    def render(self, height: int, width: int) -> np.ndarray: ...
    def close(self) -> None: ...


class TaskEnv(EnvBase):
    """One task as a TorchRL env of batch size []. Usually made by :func:`make_task_env`, whose docs hold the keys.

    Args:
        spec: row of the task; its ``index`` is the task id.
        simulation: the simulator of the task.
        task_set: set whose sizes are padded to, or None for the task's own sizes.
        device: device of all tensors; the simulation itself runs on the CPU.
        pixel_size: height and width of ``pixels``, or None for no pixels.
        pixel_steps: numbers of the steps that are rendered, 0 for the reset; others are black. Default: all.
    """

    def __init__(
        self,
        spec: TaskSpec,
        simulation: TaskSimulation,
        *,
        task_set: TaskSet | None = None,
        device: torch.device | str | int | None = None,
        pixel_size: tuple[int, int] | None = None,
        pixel_steps: Collection[int] | None = None,
    ) -> None:
        super().__init__(device=device, batch_size=torch.Size([]))
        self.task_spec = spec
        self.task_set = task_set
        self._simulation = simulation
        self._pixel_size = pixel_size
        self._pixel_steps = pixel_steps
        self._steps: int | None = None
        self._record: Mapping[str, Any] | None = None
        sizes = task_set if task_set is not None else spec
        self._observation_dim, self._action_dim = sizes.observation_dim, sizes.action_dim
        self._constants: dict[str, torch.Tensor] = {}
        if task_set is not None:
            self._constants["task"] = torch.tensor(spec.index, device=device)
            self._constants["action_mask"] = torch.arange(self._action_dim, device=device) < spec.action_dim
        self._make_specs()

    def _make_specs(self) -> None:
        entries: dict[str, Any] = {"observation": Unbounded((self._observation_dim,), dtype=torch.float32)}
        if self.task_spec.score_rule == "success":
            entries["success"] = Binary(1, dtype=torch.bool)
        if self.task_set is not None:
            entries["task"] = Categorical(len(self.task_set), shape=(), dtype=torch.int64)
            entries["action_mask"] = Binary(self._action_dim, dtype=torch.bool)
        if self._pixel_size is not None:
            entries["pixels"] = Bounded(0, 255, (*self._pixel_size, 3), dtype=torch.uint8)
        self.observation_spec = Composite(entries, device=self.device)
        self.action_spec = Bounded(-1.0, 1.0, (self._action_dim,), dtype=torch.float32, device=self.device)
        self.reward_spec = Unbounded((1,), dtype=torch.float32, device=self.device)
        flags = {key: Binary(1, dtype=torch.bool) for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        self._simulation.seed(checked_seed(seed))

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        record, self._record = self._record, None
        if record is None:
            observation = self._simulation.reset()
        else:
            observation = self._simulation.restore(record)
        self._steps = 0
        return self._pack(observation, success=False, truncated=False)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._steps is None:
            raise RuntimeError(f"{self.task_spec.name} was stepped before its first reset; call reset()")
        action = tensordict.get("action")
        if action.shape != (self._action_dim,):
            raise ValueError(
                f"{self.task_spec.name} takes an action of shape ({self._action_dim},), found {tuple(action.shape)}"
            )
        used = action.detach().cpu().numpy()[: self.task_spec.action_dim].astype(np.float64)
        if not math.isfinite(used.sum()):
            raise ValueError(
                f"{self.task_spec.name} got the action {used.tolist()} at step {self._steps} of the episode; actions "
                "must be finite: look for a NaN in the policy or its input"
            )
        np.clip(used, -1.0, 1.0, out=used)
        observation, reward, success = self._simulation.step(used)
        self._steps += 1
        out = self._pack(observation, bool(success), truncated=self._steps >= self.task_spec.episode_length)
        return out.set("reward", torch.tensor([reward], dtype=torch.float32, device=self.device))

    def _pack(self, observation: np.ndarray, success: bool, truncated: bool) -> TensorDict:
        """The entries that reset and step share."""
        if self.task_set is not None:
            padded = np.zeros(self._observation_dim, dtype=np.float32)
            padded[: observation.size] = observation
            observation = padded
        entries = {"observation": torch.from_numpy(observation)}
        for key, constant in self._constants.items():
            entries[key] = constant.clone()
        if self.task_spec.score_rule == "success":
            entries["success"] = torch.tensor([success])
        if self._pixel_size is not None:
            entries["pixels"] = self._picture(self._pixel_size)
        entries["done"] = torch.tensor([truncated])
        entries["terminated"] = torch.tensor([False])
        entries["truncated"] = torch.tensor([truncated])
        return TensorDict(entries, batch_size=self.batch_size, device=self.device)

    def _picture(self, size: tuple[int, int]) -> torch.Tensor:
        if self._pixel_steps is not None and self._steps not in self._pixel_steps:
            return torch.zeros(*size, 3, dtype=torch.uint8)
        return torch.from_numpy(self._simulation.render(*size))

    def close(self, *, raise_if_closed: bool = True) -> None:
        # EnvBase starts out closed and never says otherwise, so its flag cannot be asked.
        self._simulation.close()
        super().close(raise_if_closed=raise_if_closed)

    def __repr__(self) -> str:
        where = f", task_set={self.task_set.name!r}" if self.task_set is not None else ""
        return f"TaskEnv({self.task_spec.name!r}{where}, device={self.device})"


def make_task_env(
    name: str,
    *,
    task_set: str | TaskSet | None = None,
    seed: int = 0,
    device: torch.device | str | int | None = None,
    from_pixels: bool = False,
    pixel_size: tuple[int, int] = (256, 256),
    pixel_steps: Collection[int] | None = None,
) -> TaskEnv:
    """Make the TorchRL env of one task.

    A step is two simulator steps with one action and the sum of their rewards. Episodes are truncated after 500
    (DMControl) or 100 (Meta-World) steps and never terminate; success does not end them. Building, seeding and
    resetting leave every global generator alone.

    Keys, with O and A the task's sizes or the padded ones of ``task_set``:

    - ``observation`` float32 [O], zeros after the task's own entries;
    - ``action`` float32 [A] in [-1, 1]; it is clipped, and entries past the task's own are ignored;
    - ``("next", "reward")`` float32 [1], at most 2 (DMControl) or 20 (Meta-World) a step;
    - ``done``, ``terminated``, ``truncated`` bool [1];
    - ``success`` bool [1], Meta-World only: success of the last simulator step, False after a reset;
    - ``task`` int64 [] and ``action_mask`` bool [A], with ``task_set`` only: index of the task in the set, and True
      for the action entries that the task uses;
    - ``pixels`` uint8 [H, W, 3], with ``from_pixels`` only.

    Args:
        name: task name such as ``"walker-run"`` or ``"mw-reach"``; see :data:`torchrl_pwm.envs.MT80`.
        task_set: ``"mt30"``, ``"mt80"`` or a :class:`~torchrl_pwm.envs.TaskSet` to pad to; None leaves the
            task's own sizes.
        seed: seed of every draw of the task. ``env.set_seed`` starts the draws again.
        device: device of the tensors.
        from_pixels: also render each state. Needs an OpenGL library, see :mod:`torchrl_pwm.envs.rendering`.
        pixel_size: height and width of the pixels.
        pixel_steps: numbers of the steps that are rendered, 0 for the reset; the pixels of others are black, and cost
            nothing. Default: all.

    Returns:
        The env, of batch size [].

    Raises:
        ValueError: for a task that is unknown or not in the set, or a seed out of range.
        ImportError: if the simulator is not installed.
        RuntimeError: at the first reset with pixels, if nothing can render.

    Examples:
        >>> from torchrl_pwm import make_task_env
        >>> env = make_task_env("pendulum-swingup", task_set="mt80", seed=1)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"].shape, rollout["action_mask"][0].tolist()
        (torch.Size([3, 39]), [True, False, False, False, False, False])

        In several processes::

            ParallelEnv(2, [partial(make_task_env, "mw-reach", seed=s) for s in (0, 1)])
    """
    table = None if task_set is None else get_task_set(task_set)
    spec = get_task_spec(name) if table is None else table[name]
    seed = checked_seed(seed)
    height, width = pixel_size
    size = (int(height), int(width)) if from_pixels else None
    return TaskEnv(
        spec, make_simulation(spec, seed), task_set=table, device=device, pixel_size=size, pixel_steps=pixel_steps
    )


def make_simulation(spec: TaskSpec, seed: int) -> TaskSimulation:
    """The simulator of a task.

    Raises:
        ImportError: if it is not installed.
        ValueError: for a task that is known by its data alone.
    """
    if spec.suite is None:
        raise ValueError(
            f"{spec.name} is a task of a data set, which no env is known of: expected an env of your own in place of "
            "its name"
        )
    if spec.suite == "metaworld":
        from torchrl_pwm.envs.meta_world import MetaWorldSimulation

        return MetaWorldSimulation(spec, seed)
    from torchrl_pwm.envs.dm_control import DMControlSimulation

    return DMControlSimulation(spec, seed)


def make_task_envs(
    task: str,
    num_envs: int = 1,
    *,
    seed: int = 0,
    device: torch.device | str | int | None = None,
    parallel: bool = False,
    **options: Any,
) -> EnvBase:
    """The env of one task, ``num_envs`` times side by side; its keys are those of :func:`make_task_env`.

    Args:
        task (str): name of the task.
        num_envs (int): number N of parallel envs.

    Keyword Args:
        seed (int): seed of the first env; the next ones have ``seed + 1``, ``seed + 2``, ...
        device: device of the tensors.
        parallel (bool): a process for each env (``ParallelEnv``) instead of all in this one (``SerialEnv``).
        options: of :func:`make_task_env`.

    Returns:
        An env of batch [N].

    Raises:
        ValueError, ImportError: as :func:`make_task_env`, or if ``num_envs`` is below 1.

    Examples:
        >>> from torchrl_pwm.envs import make_task_envs
        >>> env = make_task_envs("pendulum-swingup", 2)
        >>> env.rollout(3)["observation"].shape
        torch.Size([2, 3, 3])
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, found {num_envs}.")
    make = partial(make_task_env, task, device=device, **options)
    makes = [partial(make, seed=seed + index) for index in range(num_envs)]
    return batched_env(num_envs, makes, parallel=parallel)


def restore_state(env: EnvBase, record: Mapping[str, Any]) -> TensorDictBase:
    """Put a task env into a recorded state, from which steps go on.

    Args:
        env: an env of :func:`make_task_env`, also inside :class:`~torchrl.envs.TransformedEnv`, whose transforms are
            reset and applied.
        record: mapping of arrays. DMControl: ``qpos0`` and ``qvel0`` and, where present, ``warmstart0``,
            ``dof_damping`` and the entries ``geom_pos_target``, ``geom_size_target``, ``site_pos_target``,
            ``site_size_target`` of the model's target. Meta-World: ``rand_vec``, from which the episode is begun;
            ``qpos0`` and ``qvel0`` are compared where present. Other keys are ignored.

    Returns:
        The TensorDict of a reset. The step count starts at 0, and the generator of the draws is not touched.

    Raises:
        TypeError: if ``env`` is not a single task env.
        ValueError: if the record lacks an entry or one does not fit the task.

    Examples:
        >>> from torchrl_pwm import make_task_env, restore_state
        >>> env = make_task_env("pendulum-swingup")
        >>> restore_state(env, {"qpos0": [0.0], "qvel0": [2.0]})["observation"].tolist()
        [1.0, 0.0, 2.0]
    """
    base = _base_task_env(env, "restore_state")
    base._record = record
    try:
        return env.reset()
    finally:
        base._record = None


def raw_reward(env: EnvBase) -> float:
    """Reward of the present state of a DMControl task env: one evaluation, in [0, 1], not summed over two steps.

    With :func:`restore_state` this reads the reward of any static state, its control being zero.

    Raises:
        TypeError: if ``env`` is not a single task env.
        NotImplementedError: for Meta-World, whose rewards depend on the action.

    Examples:
        >>> from torchrl_pwm.envs import make_task_env, raw_reward, restore_state
        >>> env = make_task_env("pendulum-spin")
        >>> td = restore_state(env, {"qpos0": [0.0], "qvel0": [-9.0]})
        >>> raw_reward(env)
        1.0
    """
    return _base_task_env(env, "raw_reward")._simulation.raw_reward()


def innermost_env(env: EnvBase) -> EnvBase:
    """The env without its transforms."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def _base_task_env(env: EnvBase, caller: str) -> TaskEnv:
    base = innermost_env(env)
    if not isinstance(base, TaskEnv):
        raise TypeError(
            f"{caller} works on one env of make_task_env, also inside a TransformedEnv; found {type(base).__name__}"
        )
    return base


def checked_seed(seed: int | None) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, found {seed!r}")
    return int(seed)
