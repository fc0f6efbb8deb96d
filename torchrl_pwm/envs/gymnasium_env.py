"""Gymnasium tasks as PWM reads them: one observation entry, float32, actions in [-1, 1], several envs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from functools import partial
from math import inf, isfinite
from typing import Any

import torch
from torchrl.data import Bounded
from torchrl.envs import (
    ActionScaling,
    Compose,
    DoubleToFloat,
    DTypeCastTransform,
    EnvBase,
    GymEnv,
    GymWrapper,
    ParallelEnv,
    SerialEnv,
    StepCounter,
    Transform,
    TransformedEnv,
)

from torchrl_pwm._utils.extras import require
from torchrl_pwm.envs.batched import batched_env
from torchrl_pwm.envs.multitask import innermost_env

__all__ = ["has_time_limit", "is_gym_env", "is_gym_task", "make_gym_env", "time_limit", "wrap_gym_env"]


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

    TorchRL's ``GymEnv``, ``num_envs`` times side by side, with ``DoubleToFloat`` and ``ActionScaling``; whole numbers
    are cast to float32.

    Args:
        task (str): id of the task, such as ``"Pendulum-v1"``; of one's own, ``"my_package.envs:Arm-v0"``, with the
            module that registers it, as in ``gymnasium.make``.
        num_envs (int): number N of parallel envs.

    Keyword Args:
        seed (int): seed of the envs.
        device: where the entries are put.
        parallel (bool): a process for each env (``ParallelEnv``) instead of all in this one (``SerialEnv``).
        options: of the task, passed on to ``gymnasium.make``, such as ``max_episode_steps``.

    Returns:
        An env that reads ``action`` [N, A] in [-1, 1] and writes ``observation`` [N, O], ``reward``, ``done``,
        ``terminated`` and ``truncated`` [N, 1].

    Raises:
        ImportError: if Gymnasium, the module of the id, or the simulator of the task is not installed.
        ValueError: if Gymnasium knows no such task, it does not take the options or has no time limit, the actions are
            not a bounded vector, or the observation is not one.

    Examples:
        >>> env = make_gym_env("Pendulum-v1", 2)
        >>> env.rollout(3)["observation"].shape, env.action_spec.shape
        (torch.Size([2, 3, 3]), torch.Size([2, 1]))
    """
    require("gymnasium", extra="gym", purpose=f"make_gym_env({task!r})")
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, found {num_envs}.")
    make = partial(GymEnv, task, categorical_action_encoding=False, **options)
    with torch.device("cpu"), _said_of(task, options):
        limit = _checked_time_limit(task, options)
        envs = batched_env(num_envs, make, parallel=parallel, device=device)
    envs.episode_length = limit  # as the simulators say it
    return _as_read(envs, task, seed)


def wrap_gym_env(env: Any, *, seed: int = 0, device: torch.device | str | None = None) -> EnvBase:
    """A Gymnasium env that is there already, as :func:`make_gym_env` gives a task: one env, without a batch.

    Raises:
        ValueError: as there, but for the time limit.

    Examples:
        >>> import gymnasium
        >>> wrap_gym_env(gymnasium.make("Pendulum-v1")).rollout(3)["observation"].shape
        torch.Size([3, 3])
    """
    return _as_read(GymWrapper(env, categorical_action_encoding=False, device=device), str(env), seed)


def is_gym_env(value: Any) -> bool:
    """Whether this is an env of Gymnasium's own class."""
    if importlib.util.find_spec("gymnasium") is None:
        return False
    import gymnasium

    return isinstance(value, gymnasium.Env)


def is_gym_task(name: str) -> bool:
    """Whether Gymnasium knows a task of this id."""
    if importlib.util.find_spec("gymnasium") is None:
        return False
    import gymnasium

    try:
        _spec(name)
    except (gymnasium.error.Error, ImportError):
        return False
    return True


def has_time_limit(env: EnvBase) -> bool:
    """Whether an episode of a Gymnasium env is cut after some number of steps; True for envs of other kinds."""
    while isinstance(env, TransformedEnv):
        transforms = env.transform if isinstance(env.transform, Compose) else [env.transform]
        if any(isinstance(part, StepCounter) and part.max_steps is not None for part in transforms):
            return True
        env = env.base_env
    if not isinstance(env, GymWrapper):
        return True
    import gymnasium

    layer: Any = env._env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.TimeLimit):
            return True
        layer = layer.env
    return not isinstance(layer, gymnasium.Env)


def time_limit(env: EnvBase) -> int | None:
    """Steps after which an episode is cut off at the latest, where the env says so as the envs made here do.

    Examples:
        >>> time_limit(make_gym_env("Pendulum-v1", 2))
        200
    """
    base = innermost_env(env)
    said = vars(base)  # what several envs side by side lack, they ask each of them for
    known = "episode_length" in said or not isinstance(base, (SerialEnv, ParallelEnv))
    limit: int | None = getattr(said.get("task_spec", base), "episode_length", None) if known else None
    return limit


def _spec(task: str) -> Any:
    """What Gymnasium knows of an id, after the import of the module before its colon, as ``gymnasium.make`` does it.

    Raises:
        ModuleNotFoundError: if there is no such module.
    """
    import gymnasium

    module, _, name = task.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}: expected the module that registers {name} before the colon of {task!r}. Install its "
                "package, or name its folder in PYTHONPATH",
                name=error.name,
            ) from error
    return gymnasium.spec(name)


@contextlib.contextmanager
def _said_of(task: str, options: dict[str, Any]) -> Iterator[None]:
    """What Gymnasium raises where it cannot make a task, as an error of the kind that it is."""
    import gymnasium

    try:
        yield
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{task} needs a package: {error}") from error
    except gymnasium.error.Error as error:
        raise ValueError(
            f"{error} Expected the id of a task that Gymnasium knows, found {task!r}; of a package of your own or of "
            "others, with the module that registers it: my_package.envs:Arm-v0."
        ) from error
    except TypeError as error:
        if not options:
            raise
        raise ValueError(f"{task} was given {', '.join(options)}, which it may not take: {error}") from error


def _checked_time_limit(task: str, options: dict[str, Any]) -> int:
    limit = options.get("max_episode_steps")
    if limit is None:
        limit = _spec(task).max_episode_steps
    if limit is None or limit < 1:
        raise ValueError(
            f"{task} has no time limit, so that an episode, and an evaluation with it, may never end: give one with "
            f"make_gym_env({task!r}, max_episode_steps=1000), on the command line +env.max_episode_steps=1000."
        )
    return int(limit)


def _as_read(envs: EnvBase, task: str, seed: int) -> EnvBase:
    action = envs.full_action_spec_unbatched["action"]
    if action.domain == "discrete":
        raise ValueError(f"PWM needs continuous actions; those of {task} are discrete.")
    if action.ndim != 1:
        raise ValueError(
            f"PWM needs actions of one vector, found {task} with actions of shape {list(action.shape)}: wrap it in "
            "gymnasium.wrappers.FlattenAction."
        )
    low, high = (-inf, inf) if not isinstance(action, Bounded) else (action.space.low.min(), action.space.high.max())
    if not isfinite(low) or not isfinite(high):
        raise ValueError(
            f"PWM needs continuous actions within finite bounds, found actions from {low:g} to {high:g} in {task}: "
            "wrap it so that its action_space is a Box with the bounds that matter, e.g. "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, gymnasium.spaces.Box(0, 10, (2,)))."
        )
    observation = envs.observation_spec_unbatched
    found = list(observation.keys())
    vectors = [key for key in found if key != "pixels" or len(found) == 1]
    if vectors != ["observation"] or observation["observation"].ndim != 1:
        raise ValueError(
            f"Expected one vector 'observation' in {task}, found {found} of shapes "
            f"{[list(spec.shape) for spec in observation.values()]}: build the env yourself, with CatTensors or "
            "FlattenObservation of torchrl.envs, or for pictures with ToTensorImage and a model with encoder=."
        )
    dtype = observation["observation"].dtype
    casts: list[Transform] = [DoubleToFloat()]
    if not dtype.is_floating_point:
        casts.append(DTypeCastTransform(dtype, torch.float32, in_keys=["observation"]))
    env = TransformedEnv(envs, Compose(*casts, ActionScaling()))
    env.set_seed(seed)
    return env
