"""Local Minari data sets that are recorded in Gymnasium envs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer


def record_minari(
    env_id: str, name: str, act: Callable[[np.ndarray, np.random.Generator], np.ndarray], *, episodes: int, steps: int
) -> Any:
    """Episodes of a policy ``act(observation, draws)``, each until it terminates or has so many steps."""
    buffers, draws = [], np.random.default_rng(0)
    with gymnasium.make(env_id) as env:
        for number in range(episodes):
            observations, actions, rewards, ended = [env.reset(seed=number)[0]], [], [], False
            while not ended and len(rewards) < steps:
                actions.append(np.asarray(act(observations[-1], draws), np.float32))
                observation, reward, ended, _, _ = env.step(actions[-1])
                observations.append(observation)
                rewards.append(float(reward))
            last = np.arange(len(rewards)) == len(rewards) - 1
            buffer = EpisodeBuffer(
                id=number,
                observations=observations,
                actions=actions,
                rewards=rewards,
                terminations=list(last & ended),
                truncations=list(last & (not ended)),
            )
            buffers.append(buffer)
        return minari.create_dataset_from_buffers(
            name, buffers, env=env, algorithm_name="none", author="none", description="recorded by a test"
        )
