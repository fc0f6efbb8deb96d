"""Rollouts of whole episodes in a real environment: the one evaluation function."""

from __future__ import annotations

import contextlib
import functools
import numbers
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, overload

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import nn
from torchrl.envs import EnvBase, InitTracker, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules.utils import get_primers_from_module
from tqdm import tqdm

from torchrl_pwm._utils.devices import device_of, give_back_memory
from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm.envs import WorldModelWrapper, make_task_env, make_task_envs
from torchrl_pwm.envs.action_bounds import check_action, check_policy_bounds
from torchrl_pwm.envs.gymnasium_env import has_time_limit, is_gym_env, is_gym_task, make_gym_env, wrap_gym_env
from torchrl_pwm.envs.multitask import innermost_env
from torchrl_pwm.envs.simulators.state import whole_episodes
from torchrl_pwm.envs.tasks import TaskSet, TaskSpec, get_task_set
from torchrl_pwm.evaluation.results import EpisodeStatistics, EvaluationResult
from torchrl_pwm.evaluation.scores import find_task_spec

__all__ = ["EvaluationResult", "evaluate_policy"]

if TYPE_CHECKING:
    import gymnasium
    from typing_extensions import Unpack

_VERSIONED = re.compile(r".+-v\d+")
Policy: TypeAlias = Callable[[TensorDictBase], TensorDictBase]


class _Options(TypedDict, total=False):
    episodes: int
    seed: int
    task_set: str | TaskSet | None
    world_model: nn.Module | None
    num_envs: int
    parallel: bool
    record: int
    record_steps: Collection[int] | None
    pixel_size: tuple[int, int]
    device: torch.device | str | None
    task: str | None
    success_key: NestedKey
    max_steps: int
    progress: bool
    on_step: Callable[[TensorDictBase], object] | None


@overload
def evaluate_policy(
    policy: Policy, env_or_task: str | EnvBase | gymnasium.Env[Any, Any], **options: Unpack[_Options]
) -> EvaluationResult: ...
@overload
def evaluate_policy(
    policy: Policy | Mapping[str, Policy], env_or_task: list[str] | tuple[str, ...], **options: Unpack[_Options]
) -> dict[str, EvaluationResult]: ...
def evaluate_policy(
    policy: Any,
    env_or_task: Any,
    *,
    episodes: int = 10,
    seed: int = 0,
    task_set: str | TaskSet | None = None,
    world_model: nn.Module | None = None,
    num_envs: int = 1,
    parallel: bool = False,
    record: int = 0,
    record_steps: Collection[int] | None = None,
    pixel_size: tuple[int, int] = (256, 256),
    device: torch.device | str | None = None,
    task: str | None = None,
    success_key: NestedKey = "success",
    max_steps: int = 100_000,
    progress: bool = False,
    on_step: Callable[[TensorDictBase], object] | None = None,
) -> Any:
    """Run whole episodes of a policy in the real environment; return, success and normalised score per task.

    The policy acts deterministically (for :func:`~torchrl_pwm.make_pwm_actor`: tanh of the mean), without gradients
    and in eval mode; the training flag of each of its modules is put back afterwards. The env is seeded, nothing
    else is, and torch's global generators are left as they were found.

    Every env of a batch contributes a fixed number of its *first* episodes, ``episodes`` shared out evenly, and what it
    does beyond that is not counted. Taking the first ``episodes`` that end anywhere would favour short ones.

    Args:
        policy: a TensorDictModule that writes the env's action, or any callable from TensorDict to TensorDict. For
            several tasks also a mapping from task name to policy.
        env_or_task: a task name, an env (left open; its ``set_seed`` is called), or several task names. A name that
            is no task of the tables may be the id of a Gymnasium task, and an env one of Gymnasium's: both are built as
            :func:`~torchrl_pwm.make_gym_env` does, with actions in [-1, 1].
            The env of a name is built and closed here: in a loop, pass one that you keep.
        episodes: number of episodes per task.
        seed: seed of the env. Same seed, same ``num_envs``: same episodes.
        task_set: ``"mt30"``, ``"mt80"`` or a table, for task names: the env is padded to it and carries ``task``.
            Needed by a multi-task world model or policy.
        world_model: where the policy reads ``latent`` and the env has none, the env is wrapped in
            ``WorldModelWrapper(world_model)``. Where it reads ``is_init`` and the env has none, as
            :class:`~torchrl_pwm.TDMPC2Planner` does, TorchRL's ``InitTracker`` is added.
        num_envs: copies of the env that run side by side, for task names.
        parallel: run the copies in processes of their own.
        record: keep the frames of this many episodes. Every step is rendered then, which is slow: record in a short
            call of its own, or name ``record_steps``. An env that is passed in must write ``pixels`` [H, W, 3].
        record_steps: numbers of the steps whose frames are kept, 0 for the reset; of a task name no others are
            rendered. Default: all.
        pixel_size: height and width of the frames, for task names; small ones render faster.
        device: device of the envs that are built. Default: that of the policy's first parameter.
        task: name of the task when an env is passed in. Default: the task of a ``make_task_env`` env, else the
            class of the env. A name of a task table brings the normalised score.
        success_key: entry of the next state that tells success, if the env has it.
        max_steps: an episode of more steps is an error, for envs that never end.
        progress: show a progress bar.
        on_step: called with the TensorDict of each step of the envs, what was read and done, and ``"next"``.

    Returns:
        An :class:`EvaluationResult`; for several task names a dict of them by name.

    Raises:
        ValueError: for a part of an episode, an unknown task, an input of the policy that the env does not write, an
            action of another shape or outside the env's bounds at the first step, a policy of [-1, 1] in an env of
            other bounds, or a reward, observation or action that is not finite (task, episode and step are named).
        RuntimeError: if an episode does not end within ``max_steps``.

    Examples:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_pwm import evaluate_policy
        >>> swing = TensorDictModule(lambda obs: obs[..., 2:].sign(), ["observation"], ["action"])
        >>> result = evaluate_policy(swing, "pendulum-swingup", episodes=2, seed=3)
        >>> result.episodes, result.success, result.score == result.return_mean / 1000
        (2, None, True)
    """
    for name, value in (("episodes", episodes), ("num_envs", num_envs), ("max_steps", max_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    if not isinstance(episodes, numbers.Integral):
        raise ValueError(f"episodes must be a whole number, found {episodes}: round it with int(...)")
    run = functools.partial(
        _evaluate,
        world_model=world_model,
        episodes=episodes,
        seed=seed,
        record=int(record),
        record_steps=record_steps,
        success_key=success_key,
        max_steps=max_steps,
        progress=progress,
        on_step=on_step,
    )
    if is_gym_env(env_or_task):
        place = device_of(policy) if device is None else device
        label = task or (env_or_task.spec.id if env_or_task.spec else type(env_or_task.unwrapped).__name__)
        env = _as_read(wrap_gym_env(env_or_task, seed=seed, device=place), policy, world_model)
        return run(policy, env, label=label, spec=_task_spec_of(env, task, task_set))
    if isinstance(env_or_task, EnvBase):
        env = _as_read(env_or_task, policy, world_model)
        spec = _task_spec_of(env, task, task_set)
        label = task or (type(innermost_env(env)).__name__ if spec is None else spec.name)
        return run(policy, env, label=label, spec=spec)

    names = [env_or_task] if isinstance(env_or_task, str) else list(env_or_task)
    results = {}
    for name in names:
        task_policy = _policy_for(policy, name)
        place = device_of(task_policy) if device is None else device
        table = get_task_set("mt80" if task_set is None else task_set)
        # Of a versioned name that it does not know, Gymnasium says which are like it.
        if task_set is None and name not in table and (is_gym_task(name) or _VERSIONED.fullmatch(name)):
            frames = {"from_pixels": True, "pixels_only": False} if record else {}
            env = make_gym_env(name, num_envs, seed=seed, device=place, parallel=parallel, **frames)
            try:
                results[name] = run(task_policy, _as_read(env, task_policy, world_model), label=name, spec=None)
            finally:
                env.close(raise_if_closed=False)
            continue
        spec = table[name]
        make: Callable[..., EnvBase] = make_task_env
        if num_envs > 1:
            make = functools.partial(make_task_envs, num_envs=num_envs, parallel=parallel)
        pixels = {"from_pixels": True, "pixel_size": pixel_size, "pixel_steps": record_steps} if record else {}
        env = make(name, task_set=task_set, seed=seed, device=place, **pixels)
        try:
            results[name] = run(task_policy, _as_read(env, task_policy, world_model), label=name, spec=spec)
        finally:
            env.close(raise_if_closed=False)
            del env
            give_back_memory()
    return results[env_or_task] if isinstance(env_or_task, str) else results


def _evaluate(
    policy: Policy,
    env: EnvBase,
    *,
    label: str,
    spec: TaskSpec | None,
    world_model: nn.Module | None,
    episodes: int,
    seed: int,
    record: int,
    record_steps: Collection[int] | None,
    success_key: NestedKey,
    max_steps: int,
    progress: bool,
    on_step: Callable[[TensorDictBase], object] | None,
) -> EvaluationResult:
    start = time.perf_counter()
    num_envs = max(env.batch_size.numel(), 1)
    statistics = EpisodeStatistics(label, episodes, num_envs, min(record, episodes), record_steps)
    with (
        torch.no_grad(),
        set_exploration_type(ExplorationType.DETERMINISTIC),
        kept_generators(),
        _eval_mode(policy, world_model),
        whole_episodes(env),
        tqdm(total=episodes, desc=label, unit="episode", disable=not progress) as bar,
    ):
        check_policy_bounds(policy, env)
        if not has_time_limit(env):
            warnings.warn(
                f"{label} has no time limit: an episode that does not end is an error after max_steps={max_steps} "
                "steps. Add torchrl.envs.StepCounter(max_steps) or gymnasium.wrappers.TimeLimit.",
                stacklevel=4,
            )
        done_key, first = _done_key(env), True
        env.set_seed(seed)
        state = env.reset()
        _check_inputs(policy, state, record)
        keys = [key for key in env.observation_spec.keys(True, True) if _is_floating(state.get(key, None))]
        while not statistics.complete:
            statistics.check_finite(state, keys, "observation")
            if record:
                statistics.add_frames(state)
            state = policy(state)
            statistics.check_finite(state, env.action_keys, "action")
            if first:
                check_action(state, env)
                first = False
            step, state = env.step_and_maybe_reset(state)
            if on_step is not None:
                on_step(step)
            bar.update(statistics.add_step(step, env.reward_key, done_key, success_key, keys))
            statistics.check_length(max_steps)
    returns, lengths, successes = statistics.arrays()
    return EvaluationResult(
        task=label,
        seed=seed,
        returns=returns,
        lengths=lengths,
        successes=successes,
        scores=None if spec is None else np.asarray(spec.score(returns, successes), dtype=np.float64),
        seconds=time.perf_counter() - start,
        frames=statistics.frames(),
    )


def _as_read(env: EnvBase, policy: Policy, world_model: nn.Module | None) -> EnvBase:
    """The env as the policy reads it: with the latent, and with the beginnings of episodes, if the env lacks them."""
    written = {unravel_key(key) for key in env.observation_spec.keys(True, True)}
    # auto_unwrap would take the transforms out of the caller's env
    if "is_init" in getattr(policy, "in_keys", ()) and "is_init" not in written:
        env = TransformedEnv(env, InitTracker(), auto_unwrap=False)
    if isinstance(policy, nn.Module) and _hidden_states(policy) - written:
        # so that the hidden states of a recurrent policy go along, and begin anew with each episode
        env = TransformedEnv(env, get_primers_from_module(policy, warn=False), auto_unwrap=False)
    reads_latent = "latent" in getattr(policy, "in_keys", ("latent",))
    if world_model is None or "latent" in written or not reads_latent:
        return env
    return TransformedEnv(env, WorldModelWrapper(world_model), auto_unwrap=False)


def _hidden_states(policy: nn.Module) -> set[NestedKey]:
    """What a recurrent policy reads of the step before."""
    written = {unravel_key(key) for key in getattr(policy, "out_keys", ())}
    return {unravel_key(key) for key in getattr(policy, "in_keys", ()) if unravel_key(("next", key)) in written}


def _check_inputs(policy: Policy, state: TensorDictBase, record: int) -> None:
    written = {unravel_key(key) for key in state.keys(True, True)}
    missing = [key for key in getattr(policy, "in_keys", ()) if unravel_key(key) not in written]
    if missing:
        advice = (
            "pass world_model=..., or an env wrapped in TransformedEnv(env, WorldModelWrapper(world_model))"
            if "latent" in missing
            else "rename the keys of the policy or of the env, or pass task_set=... if it is a multi-task policy"
        )
        raise ValueError(f"the policy reads {missing}, but the env writes only {sorted(map(str, written))}; {advice}")
    if record and "pixels" not in written:
        raise ValueError("record needs frames, but the env writes no 'pixels'; build it with from_pixels=True")


def _done_key(env: EnvBase) -> NestedKey:
    keys = [key for key in env.done_keys if key == "done" or (isinstance(key, tuple) and key[-1] == "done")]
    if len(keys) != 1:
        raise ValueError(f"evaluation needs an env with one done entry, found {keys}; evaluate one agent at a time")
    return keys[0]


def _policy_for(policy: Any, task: str) -> Policy:
    if not isinstance(policy, Mapping):
        return policy
    if task not in policy:
        raise ValueError(f"no policy for task {task!r}: the mapping has {sorted(policy)}")
    return policy[task]


def _task_spec_of(env: EnvBase, task: str | None, task_set: str | TaskSet | None) -> TaskSpec | None:
    if task is not None:
        return find_task_spec(task, task_set)
    spec = vars(innermost_env(env)).get("task_spec")
    return spec if isinstance(spec, TaskSpec) else None


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@contextlib.contextmanager
def _eval_mode(*modules: Any) -> Iterator[None]:
    """Eval mode, each submodule's own training flag put back at the end."""
    flags = [(part, part.training) for whole in modules if isinstance(whole, nn.Module) for part in whole.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, flag in flags:
            part.training = flag
