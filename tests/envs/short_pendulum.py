"""A task of one's own, which Gymnasium knows once this module is imported: its pendulum, for 40 steps."""

from __future__ import annotations

import gymnasium

SHORT_PENDULUM = f"{__name__}:ShortPendulum-v0"

gymnasium.register("ShortPendulum-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=40)
