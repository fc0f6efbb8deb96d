"""DMControl tasks: 19 of the control suite and 11 custom ones, with action repeat 2.

Sizes and order of observations are in :mod:`torchrl_pwm.envs.tasks`. A task owns one
``numpy.random.RandomState(seed)`` for its life; every reset draws from it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchrl_pwm._utils.extras import require
from torchrl_pwm.envs.tasks import TaskSpec

__all__ = ["DMControlSimulation"]

# Model entries of the geom or site called "target" that a recorded state may hold.
_TARGET_ENTRIES = ("geom_pos", "geom_size", "site_pos", "site_size")


class DMControlSimulation:
    """One DMControl task as a plain simulation with numpy in and out (no padding, no tensors).

    Args:
        spec: row of the task.
        seed: seed of the generator of all draws.

    Raises:
        ImportError: if dm_control is not installed.
    """

    def __init__(self, spec: TaskSpec, seed: int) -> None:
        self.spec = spec
        random = np.random.RandomState(seed)
        if spec.suite == "dm_control":
            environment = _import_suite().load(spec.domain, spec.task, task_kwargs={"random": random})
        else:
            _import_suite()
            from torchrl_pwm.envs.dm_control_custom import build_custom

            environment = build_custom(spec.domain, spec.task, random)
        self._environment = environment
        self._physics = environment.physics
        self._task = environment.task
        self._substeps = round(environment.control_timestep() / self._physics.timestep())
        self._was_reset = False
        self._renderer: Any = None

    def seed(self, seed: int) -> None:
        """Restart the generator of all draws, as if the task had been built with ``seed``."""
        self._task.random.seed(seed)

    def draw_as(self, other: DMControlSimulation) -> None:
        """Draw from the generator of another simulation of the task from here on."""
        self._task._random = other._task.random

    def reset(self) -> np.ndarray:
        """Begin an episode. Returns the first observation, float32 [observation_dim]."""
        self._was_reset = True
        return _flatten(self._environment.reset().observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, None]:
        """Two raw steps with one action, float64 [action_dim] in [-1, 1].

        Returns:
            The observation after both, float32 [observation_dim]; the sum of both raw rewards; None, for DMControl
            tasks know no success.
        """
        # As dm_control's own environment steps, less the observation between the two raw steps.
        task, physics = self._task, self._physics
        reward = 0.0
        for _ in range(self.spec.action_repeat):
            task.before_step(action, physics)
            physics.step(self._substeps)
            task.after_step(physics)
            reward += float(task.get_reward(physics))
        return _flatten(task.get_observation(physics)), reward, None

    def restore(self, record: Mapping[str, Any]) -> np.ndarray:
        """Put the task into a recorded state.

        Args:
            record: ``qpos0`` [nq] and ``qvel0`` [nv]; where present also ``geom_pos_target``, ``geom_size_target``,
                ``site_pos_target``, ``site_size_target`` (each [3]), ``dof_damping`` [nv] and ``warmstart0`` [nv].
                Other keys are ignored. What is absent keeps its present value.

        Returns:
            The observation of that state, float32 [observation_dim].

        Raises:
            ValueError: if an entry is missing, of the wrong shape or not finite.
        """
        if not self._was_reset:
            # Some tasks set up their model in their first reset; the generator must not notice it.
            state = self._task.random.get_state()
            self.reset()
            self._task.random.set_state(state)
        physics, data = self._physics, self._physics.data
        arrays = {"qpos0": data.qpos, "qvel0": data.qvel}
        for entry in _TARGET_ENTRIES:
            if f"{entry}_target" in record:
                arrays[f"{entry}_target"] = getattr(physics.named.model, entry)["target"]
        if "dof_damping" in record:
            arrays["dof_damping"] = physics.model.dof_damping
        values = {key: _entry(record, key, array.shape, self.spec.name) for key, array in arrays.items()}
        warmstart = _entry(record, "warmstart0", data.qvel.shape, self.spec.name) if "warmstart0" in record else None
        with physics.reset_context():
            for key, array in arrays.items():
                array[:] = values[key]
        if warmstart is not None:
            data.qacc_warmstart[:] = warmstart
        return _flatten(self._task.get_observation(physics))

    def raw_reward(self) -> float:
        """Reward of the present state: one evaluation, not summed over the repeat, in [0, 1]."""
        return float(self._task.get_reward(self._physics))

    def render(self, height: int, width: int) -> np.ndarray:
        """Picture from the first camera of the model, uint8 [height, width, 3]."""
        from torchrl_pwm.envs.rendering import OffscreenRenderer, fixed_camera

        model, data = self._physics.model.ptr, self._physics.data.ptr
        if self._renderer is None:
            self._renderer = OffscreenRenderer(model, height, width)
        return self._renderer.render(data, fixed_camera(model, 0))

    def close(self) -> None:
        """Free the simulator."""
        if self._renderer is not None:
            self._renderer.close()
        self._environment.close()


def _import_suite() -> Any:
    with warnings.catch_warnings():
        if not os.environ.get("MUJOCO_GL"):
            # dm_control looks for a display when it is imported; states do not need one.
            warnings.filterwarnings("ignore", message=".*DISPLAY.*")
        return require("dm_control.suite", extra="mt80", purpose="a DMControl task")


def _flatten(observation: Mapping[str, Any]) -> np.ndarray:
    """Entries of an observation in their order, scalars as one number: float32 [observation_dim]."""
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)


def _entry(record: Mapping[str, Any], key: str, shape: tuple[int, ...], task: str) -> np.ndarray:
    if key not in record:
        raise ValueError(
            f"a recorded state of {task} needs qpos0 and qvel0, but {key} is missing; found {sorted(record)}"
        )
    value = np.asarray(record[key], dtype=np.float64)
    if value.shape != tuple(shape):
        raise ValueError(f"{key} of a recorded state of {task} must have shape {tuple(shape)}, found {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{key} of a recorded state of {task} must be finite, found {value}")
    return value
