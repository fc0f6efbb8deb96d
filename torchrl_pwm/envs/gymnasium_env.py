"""Gymnasium tasks as PWM reads them: one observation entry, float32, actions in [-1, 1], several envs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torchrl.data import Bounded
from torchrl.envs import ActionScaling, Compose, DoubleToFloat, EnvBase, GymEnv, ParallelEnv, SerialEnv, TransformedEnv

from torchrl_pwm._utils.extras import require

__all__ = ["make_gym_env"]


def make_gym_env(
    task: str,
    num_envs: int = 1,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    parallel: bool = False,
    **options: Any,
) -> EnvBase:
    """A Gymnasium task with continuous actions, as a batched TorchRL env ready for PWM.

    TorchRL's ``GymEnv``, ``num_envs`` times side by side, with ``DoubleToFloat`` and ``ActionScaling``.

    Args:
        task (str): id of the task, such as ``"Pendulum-v1"``.
        num_envs (int): number N of parallel envs.

    Keyword Args:
        seed (int): seed of the envs.
        device: where the entries are put.
        parallel (bool): a process for each env (``ParallelEnv``) instead of all in this one (``SerialEnv``).
        options: of the task, passed on to ``gymnasium.make``.

    Returns:
        An env that reads ``action`` [N, A] in [-1, 1] and writes ``observation`` [N, O], ``reward``, ``done``,
        ``terminated`` and ``truncated`` [N, 1].

    Raises:
        ImportError: if Gymnasium is not installed.
        ValueError: if the actions are not a bounded vector, or the observation is not one.

    Examples:
        >>> env = make_gym_env("Pendulum-v1", 2)
        >>> env.rollout(3)["observation"].shape, env.action_spec.shape
        (torch.Size([2, 3, 3]), torch.Size([2, 1]))
    """
    require("gymnasium", extra="gym", purpose=f"make_gym_env({task!r})")
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, found {num_envs}.")
    make = partial(GymEnv, task, categorical_action_encoding=False, **options)
    with torch.device("cpu"):
        envs = (ParallelEnv if parallel else SerialEnv)(num_envs, make, device=device)
    action = envs.action_spec_unbatched
    if not isinstance(action, Bounded) or action.ndim != 1 or not action.space.low.isfinite().all():
        raise ValueError(f"PWM needs continuous actions within finite bounds, found {action} in {task}.")
    observation = envs.observation_spec_unbatched
    if list(observation.keys()) != ["observation"] or observation["observation"].ndim != 1:
        raise ValueError(
            f"Expected one vector 'observation' in {task}, found {list(observation.keys())} of shapes "
            f"{[list(spec.shape) for spec in observation.values()]}: build the env yourself, with CatTensors or "
            "FlattenObservation of torchrl.envs."
        )
    env = TransformedEnv(envs, Compose(DoubleToFloat(), ActionScaling()))
    env.set_seed(seed)
    return env
