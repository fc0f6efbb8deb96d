"""Recorded task data: 20 steps of each of the 80 tasks, and static states of the DMControl ones.

The arrays were recorded from the reference chain of each family with mujoco 3.3.0, dm_control 1.0.28 and
metaworld 3.1.1, independently of this package.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

_FOLDER = Path(__file__).parents[1] / "golden"


@cache
def _archive(family: str):
    return np.load(_FOLDER / f"golden_{family}.npz")


def _golden(family: str, task: str) -> dict[str, np.ndarray]:
    """Entries of one task: ``family`` is "dmc" or "mw"."""
    archive = _archive(family)
    entries = {key.rsplit("/", 1)[1]: archive[key] for key in archive.files if key.startswith(f"{task}/")}
    assert entries, f"no recorded data of {task}"
    return entries


def _replay(env, td, actions: np.ndarray) -> dict[str, np.ndarray]:
    """Apply recorded actions after the reset ``td``."""
    trace = {"obs": [td["observation"].numpy()], "rewards": [], "success": []}
    for action in actions:
        padded = torch.zeros(env.action_spec.shape)
        padded[: action.size] = torch.from_numpy(action)
        following = env.step(td.set("action", padded))["next"]
        trace["obs"].append(following["observation"].numpy())
        trace["rewards"].append(following["reward"].item())
        trace["success"].append(following["success"].item() if "success" in following else False)
        td = following.exclude("reward")
    return {key: np.array(value) for key, value in trace.items()}


@pytest.fixture(scope="session")
def golden():
    """``golden(family, task)``: the recorded entries of a task."""
    return _golden


@pytest.fixture(scope="session")
def replay():
    """``replay(env, td, actions)``: observations, rewards and success of recorded actions."""
    return _replay
