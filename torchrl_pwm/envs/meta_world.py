"""The 50 Meta-World tasks with action repeat 2, clean resets and a generator of their own.

Meta-World resets a task twice in a row, and where it draws afresh each time, 15 tasks keep parts of the earlier
draw: objects and targets at the wrong place. A *clean* reset draws first and then resets again with the drawn vector
frozen, so that the episode depends on that vector only. A warm-up raw step with a zero action follows, as in TD-MPC2;
the first observation is the one from before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torchrl import torchrl_logger

from torchrl_pwm._utils.extras import require
from torchrl_pwm.envs.tasks import TaskSpec

__all__ = ["MetaWorldSimulation"]

# Every number of this project about Meta-World was measured with this engine; others change the trajectories.
_MUJOCO_VERSION = "3.3.0"
# A reset reads the frozen vector once in each of its two passes; a rejected vector would be read for ever.
_MAX_FROZEN_READS = 16


class MetaWorldSimulation:
    """One Meta-World task as a plain simulation with numpy in and out (no padding, no tensors).

    Args:
        spec: row of the task.
        seed: seed of the generator of all draws.

    Raises:
        ImportError: if metaworld is not installed.
    """

    def __init__(self, spec: TaskSpec, seed: int) -> None:
        self.spec = spec
        classes = require("metaworld.env_dict", extra="mt80", purpose="a Meta-World task")
        mujoco = require("mujoco", extra="mt80", purpose="a Meta-World task")
        if mujoco.__version__ != _MUJOCO_VERSION:
            torchrl_logger.warning(
                f"Meta-World runs on mujoco {mujoco.__version__}: results are not comparable with those of "
                f'{_MUJOCO_VERSION}; pip install "torchrl-pwm[mt80]" pins it'
            )
        # With a seed the constructor uses numpy's global generator and puts its state back.
        self._env = classes.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[spec.env_id](seed=seed)
        self._env.seeded_rand_vec = True
        self._draw = self._env._get_state_rand_vec
        self._zero_action = np.zeros(spec.action_dim)
        self._renderer: Any = None
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Restart the generator of all draws, as if the task had been built with ``seed``."""
        self._env.seed(seed)

    def draw_as(self, other: MetaWorldSimulation) -> None:
        """Draw from the generator of another simulation of the task from here on."""
        self._env.np_random = other._env.np_random

    def reset(self) -> np.ndarray:
        """Begin an episode with a fresh draw. Returns the first observation, float32 [39]."""
        env = self._env
        env._freeze_rand_vec = False
        env.reset()
        return self._clean_reset(env._last_rand_vec)

    def _clean_reset(self, vector: np.ndarray) -> np.ndarray:
        env, reads = self._env, 0

        def frozen() -> np.ndarray:
            nonlocal reads
            reads += 1
            if reads > _MAX_FROZEN_READS:
                raise ValueError(
                    f"{self.spec.name} rejects rand_vec {vector.tolist()}: its start and goal are too close; "
                    "use a vector that the task drew itself"
                )
            return self._draw()

        env._freeze_rand_vec, env._last_rand_vec = True, vector
        env._get_state_rand_vec = frozen
        try:
            observation, _ = env.reset()
        finally:
            env._get_state_rand_vec = self._draw
        for _ in range(self.spec.warmup_raw_steps):
            env.step(self._zero_action)
        return observation.astype(np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Two raw steps with one action, float64 [4] in [-1, 1].

        Returns:
            The observation after both, float32 [39]; the sum of both raw rewards; success of the second raw step.
        """
        # In single precision, as policies send it: contacts amplify the rounding of the hand's displacement.
        action = action.astype(np.float32)
        reward = 0.0
        for _ in range(self.spec.action_repeat):
            observation, raw, _, _, info = self._env.step(action)
            reward += float(raw)
        return observation.astype(np.float32), reward, bool(info["success"])

    def restore(self, record: Mapping[str, Any]) -> np.ndarray:
        """Begin the episode of a recorded random vector.

        Args:
            record: ``rand_vec`` [3 or 6], a vector that this task drew. Where ``qpos0`` and ``qvel0`` are present,
                the state after the reset must equal them. Other keys are ignored. (Positions and velocities alone
                are no complete state here: the hand follows a mocap body, and tasks cache their targets.)

        Returns:
            The first observation, float32 [39].

        Raises:
            ValueError: if ``rand_vec`` is missing, of the wrong shape, out of range or rejected by the task, or if
                the state after the reset differs from the recorded one.
        """
        name, space = self.spec.name, self._env._random_reset_space
        if "rand_vec" not in record:
            raise ValueError(f"a recorded state of {name} needs rand_vec; found {sorted(record)}")
        vector = np.array(record["rand_vec"], dtype=np.float64)
        if vector.shape != space.low.shape:
            raise ValueError(f"rand_vec of {name} must have shape {space.low.shape}, found {vector.shape}")
        # The bounds are float32, the draws float64.
        if not ((vector >= space.low - 1e-6) & (vector <= space.high + 1e-6)).all():
            raise ValueError(f"rand_vec of {name} must lie in {space.low} .. {space.high}, found {vector}")
        observation = self._clean_reset(vector)
        for key, present in (("qpos0", self._env.data.qpos), ("qvel0", self._env.data.qvel)):
            expected = np.asarray(record.get(key, present))
            if expected.shape != present.shape or not np.allclose(expected, present, atol=1e-3):
                raise ValueError(
                    f"{name} does not reach the recorded {key} from its rand_vec: expected {expected}, "
                    f"found {present}; was it recorded with mujoco {_MUJOCO_VERSION} and after the warm-up step?"
                )
        return observation

    def raw_reward(self) -> float:
        raise NotImplementedError(
            f"the reward of {self.spec.name} depends on the action and is read from a step; "
            "raw_reward is for DMControl tasks"
        )

    def render(self, height: int, width: int) -> np.ndarray:
        """Picture from a corner of the table, uint8 [height, width, 3]."""
        from torchrl_pwm.envs.rendering import OffscreenRenderer, fixed_camera

        model = self._env.model
        if self._renderer is None:
            self._renderer = OffscreenRenderer(model, height, width)
        picture = self._renderer.render(self._env.data, fixed_camera(model, "corner4"))
        # This camera hangs upside down.
        return picture[::-1, ::-1].copy()

    def close(self) -> None:
        """Free the simulator."""
        if self._renderer is not None:
            self._renderer.close()
        self._env.close()
