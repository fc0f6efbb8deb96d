"""Minari data sets, the standard of offline reinforcement learning with Gymnasium."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from torchrl_pwm._utils.door import check_hdf5, making
from torchrl_pwm._utils.errors import DamagedFileError, first_line
from torchrl_pwm._utils.extras import require
from torchrl_pwm.data.imports.episodes import Bounds, write_episodes
from torchrl_pwm.data.store.store import EpisodeStore
from torchrl_pwm.envs.tasks import TaskSpec

__all__ = ["import_minari"]

_HDF5 = "main_data.hdf5"


def import_minari(
    dataset: Any,
    root: str | os.PathLike[str],
    *,
    observation_keys: Sequence[str] | None = None,
    name: str | None = None,
    action_low: Bounds | None = None,
    action_high: Bounds | None = None,
    clip_actions: bool = False,
    download: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
    progress: bool = True,
) -> EpisodeStore:
    """Converts a Minari data set to one for :class:`~torchrl_pwm.TDMPC2ExperienceReplay`.

    Episodes keep their lengths and terminations. Actions are scaled to [-1, 1] from the bounds of the data set's action
    space, which the new one keeps (``TaskRows.action_low``); the manifest's ``source`` names the env.

    Args:
        dataset: id of a Minari data set, or one that is loaded.
        root: folder of the data set to make.
        observation_keys: entries of a dict observation, in the order in which they are joined; default: all, in that of
            the observation space.
        name: name of the task; default: that of the folder.
        action_low, action_high: bounds of the actions where the space has none, or in place of its own.
        clip_actions: clip actions beyond the bounds, as most envs do; else they are refused.
        download: fetch the data set if it is not there.
        dtype: floating-point type on disk.
        progress: whether progress is shown.

    Returns:
        The opened data set.

    Raises:
        ImportError: if Minari is not installed.
        FileNotFoundError: if there is no such data set.
        FileExistsError: if ``root`` holds anything.
        DamagedFileError: if the data set is damaged, or refers to other files.
        ValueError: for actions or observations that are no vectors of numbers, and what
            :func:`~torchrl_pwm.write_episodes` refuses.

    Examples:
        >>> from torchrl_pwm import import_minari
        >>> store = import_minari("mujoco/inverted_pendulum/expert-v0", "data/pendulum")  # doctest: +SKIP
        >>> store.terminates  # doctest: +SKIP
        True
    """
    minari = require("minari", extra="datasets", purpose="import_minari")
    if isinstance(dataset, (str, os.PathLike)):
        dataset = _load(minari, os.fspath(dataset), download)
    folder = Path(dataset.storage.data_path)
    if (folder / _HDF5).exists():
        check_hdf5(folder / _HDF5, purpose="import_minari")
    fields = _observation_fields(dataset.observation_space, observation_keys)
    low, high = _action_space(dataset.action_space, action_low, action_high)
    label = name or Path(os.path.abspath(root)).name
    spec = TaskSpec(
        label,
        observation_fields=fields,
        action_dim=dataset.action_space.shape[0],
        episode_length=max(len(episode) for episode in _read(dataset, folder)),
    )
    return write_episodes(
        root,
        _episodes(_read(dataset, folder), [key for key, _ in fields] if _is_dict(dataset.observation_space) else None),
        task_specs=[spec],
        name=label,
        action_low=low,
        action_high=high,
        clip_actions=clip_actions,
        dtype=dtype,
        source={"kind": "minari", "dataset": dataset.spec.dataset_id, "env": _env_id(dataset)},
        progress=progress,
    )


def _load(minari: Any, dataset_id: str, download: bool) -> Any:
    """A Minari data set by its id.

    Raises:
        FileNotFoundError: if it is not there.
    """
    local = sorted(minari.list_local_datasets())
    if dataset_id not in local:
        if not download:
            raise FileNotFoundError(
                f"there is no Minari data set {dataset_id!r} among the local ones, {local}; download=True fetches it, "
                f"as `minari download {dataset_id}` does"
            )
        minari.download_dataset(dataset_id)
    with _of_set(minari.storage.datasets_root_dir.get_dataset_path(dataset_id)):
        return minari.load_dataset(dataset_id)


@contextlib.contextmanager
def _of_set(folder: os.PathLike[str]) -> Iterator[None]:
    """What Minari cannot read is an error of the data set's folder."""
    try:
        with making("Minari data set", folder):
            yield
    except DamagedFileError:
        raise
    except (ValueError, OSError) as error:
        raise DamagedFileError(
            f"{folder} is a damaged Minari data set ({first_line(error)}); fetch it again"
        ) from error


def _read(dataset: Any, folder: Path) -> Iterator[Any]:
    """Its episodes."""
    with _of_set(folder):
        episodes = iter(dataset.iterate_episodes())
    while True:
        with _of_set(folder):
            episode = next(episodes, None)
        if episode is None:
            return
        yield episode


def _is_dict(space: Any) -> bool:
    """Whether observations have entries with names."""
    return isinstance(getattr(space, "spaces", None), Mapping)


def _observation_fields(space: Any, keys: Sequence[str] | None) -> tuple[tuple[str, int], ...]:
    """Names and sizes of the parts of an observation.

    Raises:
        ValueError: if they are no vectors of numbers.
    """
    parts = space.spaces if _is_dict(space) else {"observation": space}
    if keys is not None and not _is_dict(space):
        raise ValueError(f"observation_keys names entries of dict observations, but the space is {space}")
    chosen = list(parts) if keys is None else list(keys)
    if not chosen or any(key not in parts for key in chosen):
        raise ValueError(f"observation_keys must name entries of the observation, {list(parts)}, found {chosen}")
    for key in chosen:
        shape = getattr(parts[key], "shape", None)
        if shape is None or len(shape) != 1 or not hasattr(parts[key], "low"):
            raise ValueError(
                f"the {key!r} of the observations is {parts[key]}, expected a vector (a Box of one dimension): choose "
                "others with observation_keys, or record the data set with gymnasium's FlattenObservation"
            )
    return tuple((key, parts[key].shape[0]) for key in chosen)


def _action_space(space: Any, low: Bounds | None, high: Bounds | None) -> tuple[Bounds | None, Bounds | None]:
    """Bounds of the actions: those given, else those of the space.

    Raises:
        ValueError: for actions that are no vectors within finite bounds.
    """
    if not hasattr(space, "low") or len(space.shape) != 1:
        raise ValueError(f"PWM needs continuous actions, a Box of one dimension; those of the data set are {space}")
    if low is None and high is None:
        low, high = space.low, space.high
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(
                f"the action space {space} has no finite bounds: pass action_low and action_high, from which actions "
                "are scaled to [-1, 1]"
            )
    return low, high


def _episodes(episodes: Iterator[Any], keys: Sequence[str] | None) -> Iterator[Mapping[str, Any]]:
    for episode in episodes:
        observation = episode.observations
        if keys is not None:
            observation = np.concatenate([observation[key] for key in keys], axis=-1)
        yield {
            "observation": observation,
            "action": episode.actions,
            "reward": episode.rewards,
            "terminated": episode.terminations,
        }


def _env_id(dataset: Any) -> str | None:
    """Id of the env that the data set was recorded in, if it says."""
    return None if dataset.env_spec is None else dataset.env_spec.id
