"""Recorded episodes in memory, as arrays or TensorDicts, written to a data set."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from tqdm import tqdm

from torchrl_pwm._utils.versions import versions
from torchrl_pwm.data.store.appender import ActionBounds, EpisodeAppender
from torchrl_pwm.data.store.store import EpisodeStore
from torchrl_pwm.envs.tasks import TaskSet, TaskSpec, get_task_set

__all__ = ["write_episodes"]

_NEEDED = ("observation", "action", "reward")
_ENTRIES = (*_NEEDED, "terminated", "truncated", "task", "success")
Bounds = npt.ArrayLike | Mapping[str, npt.ArrayLike]


def write_episodes(
    root: str | os.PathLike[str],
    episodes: Iterable[Mapping[str, Any] | TensorDictBase] | TensorDictBase,
    *,
    task_specs: str | TaskSet | Sequence[TaskSpec] | None = None,
    name: str | None = None,
    action_low: Bounds | None = None,
    action_high: Bounds | None = None,
    clip_actions: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
    source: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> EpisodeStore:
    """Writes recorded episodes of any length to a data set, which :class:`~torchrl_pwm.TDMPC2ExperienceReplay` reads.

    An episode of E transitions is a mapping of arrays,

    - ``observation`` [E + 1, O], the last one being that which the last action led to,
    - ``action`` [E, A], in [-1, 1] or within the bounds that are given,
    - ``reward`` [E] (or [E, 1]),
    - ``terminated``: whether it ended by termination (a fall, a goal), after which there is nothing more to earn: a
      bool, or one for each step. Default: it was cut off, and would have gone on;
    - ``task``: name of its task, where there are several; ``success``: whether it succeeded, as ``terminated``;

    or a TensorDict of transitions in TorchRL's layout (``observation``, ``action``, ``("next", "observation")``,
    ``("next", "reward")``, ``("next", "terminated")``, ``("next", "done")``), [E], or [T] or [N, T] with several
    episodes, as ``env.rollout`` and collectors give them, which are cut where they are done.

    Numbers of any type are stored as float32. That is refused where it would lose what varies in an observation entry
    (time stamps, counters), and so is what is not finite, named by episode and step. Constant entries are kept.
    Episodes may come from a generator: one at a time is in memory.

    Args:
        root: folder of the data set to make.
        episodes: the episodes.
        task_specs: tasks that the episodes may be of: ``"mt30"``, ``"mt80"``, a task set, or tasks of your own, which
            the data set keeps. Default: the tasks that come, with the sizes and lengths of their episodes; episodes
            without ``task`` are of one with the name of the data set.
        name: name of the data set and its tasks; default: that of the folder.
        action_low, action_high: bounds of the actions, a number or [A], or one by task name. Actions are scaled from
            them to [-1, 1], and the data set keeps both (``TaskRows.action_low``), so that the actions of a policy can
            be scaled back.
        clip_actions: clip actions beyond the bounds (or [-1, 1]), as most envs do; else they are refused.
        dtype: floating-point type on disk; samples are float32 whatever it is.
        source: what the manifest says of where the data come from; JSON values only.
        progress: whether progress is shown.

    Returns:
        The opened data set.

    Raises:
        FileExistsError: if ``root`` holds anything.
        ValueError: for no episodes, entries that are missing, unknown, of wrong shapes or types, values that are not
            finite or do not fit into float32, and actions out of range. Nothing is left behind.

    Examples:
        >>> import tempfile, numpy as np
        >>> from torchrl_pwm import TDMPC2ExperienceReplay, write_episodes
        >>> def episode(length):
        ...     action = np.random.uniform(-2.0, 2.0, (length, 1))
        ...     return {
        ...         "observation": np.random.randn(length + 1, 3),
        ...         "action": action,
        ...         "reward": -np.square(action[:, 0]),
        ...         "terminated": length < 20,
        ...     }
        >>> root = tempfile.mkdtemp() + "/arm"
        >>> store = write_episodes(root, [episode(3), episode(20), episode(12)], action_low=-2.0, action_high=2.0)
        >>> store.tasks, store.lengths.tolist(), store.terminated.tolist()
        (('arm',), [3, 20, 12], [True, False, True])
        >>> TDMPC2ExperienceReplay(root, batch_size=8, slice_len=10).sample().shape
        torch.Size([8, 10])
    """
    label = name or Path(os.path.abspath(root)).name
    table = _task_set(task_specs, label)
    appender = EpisodeAppender(
        root,
        table,
        bounds=partial(action_bounds, action_low, action_high),
        clip_actions=clip_actions,
        dtype=dtype,
        source={"kind": "episodes", **(source or {}), "versions": versions()},
    )
    bar = tqdm(desc=f"writing {label}", unit="episode", disable=not progress)
    with bar, appender:
        for number, record in enumerate(_records(episodes)):
            episode = read_episode(record, f"episode {number}")
            appender.append(
                _task_name(episode.task, table, f"episode {number}"),
                episode.observation,
                episode.action,
                episode.reward,
                terminated=episode.terminated,
                success=episode.success,
            )
            bar.update()
    return EpisodeStore(root)


def _task_set(task_specs: str | TaskSet | Sequence[TaskSpec] | None, name: str) -> str | TaskSet:
    if task_specs is None:
        return name
    return get_task_set(task_specs) if isinstance(task_specs, (str, TaskSet)) else TaskSet(name, task_specs)


def _task_name(task: str | int | None, table: str | TaskSet, place: str) -> str:
    """Name of an episode's task, which may have none where there is one only, and a number in a set that is known.

    Raises:
        ValueError: if it is not known.
    """
    names = (table,) if isinstance(table, str) else table.names
    if task is None and len(names) == 1:
        return names[0]
    if isinstance(task, int) and not isinstance(table, str) and 0 <= task < len(names):
        return names[task]
    if isinstance(task, str):
        return task if isinstance(table, str) else table[task].name
    raise ValueError(
        f"{place} has the task {task!r}, expected a name{'' if isinstance(table, str) else f', one of {list(names)}'}"
    )


def action_bounds(low: Bounds | None, high: Bounds | None, task: str, action_dim: int) -> ActionBounds | None:
    """Lower and upper bounds [A] of the actions of a task; None where they are not to be scaled.

    Raises:
        ValueError: for one without the other, numbers of another size, and what are no finite bounds.
    """
    low, high = (bound.get(task) if isinstance(bound, Mapping) else bound for bound in (low, high))
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise ValueError("action_low and action_high go together, found one of them: give both bounds of the actions")
    bounds = []
    for key, bound in (("action_low", low), ("action_high", high)):
        array = np.asarray(bound, np.float64)
        if array.shape not in ((), (action_dim,)):
            raise ValueError(
                f"{key} of task {task} must be a number or one for each of {action_dim} action entries, found shape "
                f"{array.shape}"
            )
        bounds.append(np.broadcast_to(array, (action_dim,)).copy())
    if not (np.isfinite(bounds).all() and (bounds[0] < bounds[1]).all()):
        raise ValueError(
            f"the bounds of the actions of task {task} must be finite, the lower below the upper, found {bounds[0]} "
            f"and {bounds[1]}"
        )
    return bounds[0], bounds[1]


class EpisodeArrays(NamedTuple):
    """One episode of E transitions: observation [E + 1, O], action [E, A], reward [E]."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    success: bool | None
    task: str | int | None


def _records(episodes: Iterable[Mapping[str, Any] | TensorDictBase] | TensorDictBase) -> Iterator[Mapping[str, Any]]:
    """Episodes as mappings; TensorDicts are cut where they are done."""
    if isinstance(episodes, Mapping) and not isinstance(episodes, TensorDictBase):
        raise ValueError("expected several episodes, found one mapping: put it into a list")
    for episode in [episodes] if isinstance(episodes, TensorDictBase) else episodes:
        if not isinstance(episode, TensorDictBase):
            yield episode
        elif episode.get("next", None) is None:
            yield episode.to_dict()
        else:
            yield from _cut(episode)


def _cut(steps: TensorDictBase) -> Iterator[Mapping[str, Any]]:
    """The episodes of transitions [T] or [N, T], without the padding that a mask of TorchRL's marks.

    Raises:
        ValueError: for another batch, or an observation that does not follow from the step before.
    """
    if steps.ndim not in (1, 2):
        raise ValueError(f"expected transitions of batch [T] or [N, T], found batch {list(steps.batch_size)}")
    for number, row in enumerate(steps if steps.ndim == 2 else [steps]):
        mask = row.get(("collector", "mask"), row.get("mask", None))
        if mask is not None:
            row = row[mask.reshape(len(row)).cpu()]
        done = torch.zeros(len(row), dtype=torch.bool)
        for key in ("done", "terminated", "truncated"):
            flag = row.get(("next", key), None)
            if flag is not None:
                done |= flag.reshape(len(row)).cpu()
        following, observation = row["next", "observation"], row["observation"]
        before, after = following[:-1], observation[1:]
        same = (before == after) | (before.isnan() & after.isnan())  # a NaN is named as one where it is written
        joins = same.flatten(1).all(1).cpu() | done[:-1]
        if not joins.all():
            step = int((~joins).nonzero()[0])
            raise ValueError(
                f"the observation of step {step + 1} of row {number} is not the next observation of the step before, "
                'which is not done: mark the ends of episodes in ("next", "done")'
            )
        ends = (done.nonzero()[:, 0] + 1).tolist()
        for start, stop in zip([0, *ends], [*ends, len(row)]):
            if start < stop:
                part = row[start:stop]
                given = {"task": part.get("task", None), "success": part.get(("next", "success"), None)}
                yield {
                    **{key: value for key, value in given.items() if value is not None},
                    "action": part["action"],
                    "observation": torch.cat([part["observation"], part["next", "observation"][-1:]]),
                    "reward": part["next", "reward"],
                    "terminated": part["next"].get("terminated", torch.zeros(len(part), dtype=torch.bool)),
                }


def read_episode(record: Mapping[str, Any], place: str) -> EpisodeArrays:
    """The arrays of one episode.

    Args:
        record: as :func:`write_episodes` takes it.
        place: what it is called in messages.

    Raises:
        ValueError: for entries that are missing, unknown, or of wrong shapes or types.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{place} is a {type(record).__name__}, expected a mapping of arrays or a TensorDict")
    missing = [key for key in _NEEDED if key not in record]
    unknown = [key for key in record if key not in _ENTRIES]
    if missing or unknown:
        raise ValueError(
            f"{place} has the entries {sorted(map(str, record))}: "
            f"{f'it lacks {missing}' if missing else f'{unknown} are not known'}; an episode has {list(_ENTRIES)}, of "
            f"which the first {len(_NEEDED)} are needed"
        )
    observation, action, reward = (_numbers(record[key], key, place) for key in _NEEDED)
    if reward.ndim == 2 and reward.shape[1] == 1:
        reward = reward[:, 0]
    steps = len(reward) if reward.ndim else 0
    expected = {"observation": (steps + 1, "O"), "action": (steps, "A"), "reward": (steps,)}
    for key, array in (("reward", reward), ("observation", observation), ("action", action)):
        if array.ndim != len(expected[key]) or len(array) != expected[key][0] or not array.size:
            shape = ", ".join(map(str, expected[key])) if steps else "E, with one or more steps E"
            others = " and ".join(
                f"{other} {given.shape}"
                for other, given in (("observation", observation), ("action", action), ("reward", reward))
                if other != key
            )
            raise ValueError(
                f"{place} has {key} of shape {array.shape}, expected [{shape}]: E rewards and actions, and E + 1 "
                f"observations, each a vector; found beside it {others}"
            )
    success = record.get("success")
    return EpisodeArrays(
        observation=observation,
        action=action,
        reward=reward,
        terminated=_ended(record.get("terminated", False), steps, place),
        success=None if success is None else bool(_flags(success, steps, "success", place)[-1]),
        task=_task(record.get("task"), place),
    )


def _task(value: Any, place: str) -> str | int | None:
    """Name or number of the task of an episode."""
    if value is None or isinstance(value, str):
        return value
    numbers = np.unique(_numbers(value, "task", place))
    if len(numbers) != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(f"{place} has the tasks {numbers.tolist()}, expected one, by its name or number")
    return int(numbers[0])


def _numbers(value: Any, key: str, place: str) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{place} has {key} of type {array.dtype}, expected numbers")
    return array


def _flags(value: Any, steps: int, key: str, place: str) -> np.ndarray:
    """A bool for each step, or one for all."""
    array = _numbers(value, key, place)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{place} has {key} that is no number at step {int(np.argwhere(~np.isfinite(array))[0][0])}")
    array = array.astype(bool)
    if array.size not in (1, steps):
        raise ValueError(f"{place} has {key} of shape {array.shape}, expected a bool or one for each of {steps} steps")
    return array.reshape(-1)


def _ended(value: Any, steps: int, place: str) -> bool:
    """Whether an episode ended by termination.

    Raises:
        ValueError: if it went on afterwards.
    """
    flags = _flags(value, steps, "terminated", place)
    if flags[:-1].any():
        step = int(flags.nonzero()[0][0])
        raise ValueError(
            f"{place} is terminated at step {step} and goes on to step {steps - 1}: an episode ends where it is "
            "terminated, cut it there"
        )
    return bool(flags[-1])
