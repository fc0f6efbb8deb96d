"""The data of a run: its tasks, and episodes that are opened, converted or collected."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from torchrl_pwm._utils.extras import how_to_install
from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay, collect_dataset, convert_shards
from torchrl_pwm.envs import TaskSet, get_task_set


def check_simulators(tasks: list[str], task_set: TaskSet) -> None:
    """Raises ImportError if the simulator of a task is not installed."""
    for package in sorted({"metaworld" if task_set[task].suite == "metaworld" else "dm_control" for task in tasks}):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"these tasks need {package}, which is not installed; {how_to_install('mt80')}")


def select_tasks(task: str | Iterable[str], task_set: TaskSet) -> list[str]:
    """Task names from a name, several names, or the name of a whole set.

    Raises:
        ValueError: if a name is not of the task set.
    """
    if isinstance(task, str):
        task = task_set.names if task == task_set.name else task.split(",")
    return list(dict.fromkeys(task_set[name].name for name in task))


def collect_data(config: DictConfig, folder: Path, tasks: list[str]) -> EpisodeStore:
    """Collects the run's data, or goes on with a collection that was interrupted."""
    data = config.data
    families = {name: family(get_task_set(config.task_set)[name].suite) for name in tasks}
    return collect_dataset(
        tasks,
        Path(data.root) if data.root else folder / "data",
        episodes={name: of_task(data.episodes, name, kind) for name, kind in families.items()},
        behavior={name: of_task(data.behavior, name, kind) for name, kind in families.items()},
        noise=list(data.noise),
        task_set=config.task_set,
        seed=config.seed,
        workers=config.workers,
        progress=config.progress,
    )


def of_task(settings: DictConfig, task: str, kind: str) -> Any:
    """A setting that is given for a task by name, or for all tasks of its kind."""
    return settings[task] if task in settings else settings[kind]


def open_data(config: DictConfig, tasks: list[str]) -> EpisodeStore:
    """Opens the data, after converting published shards where that was not done yet.

    Raises:
        FileNotFoundError, ValueError: if the data are not there or not of the configured set.
    """
    data = config.data
    if data.root and (Path(data.root) / "manifest.json").exists():
        store = EpisodeStore(data.root, verify=data.verify)
    elif data.root and any(Path(data.root).glob("chunk_*.pt")):
        converted = Path(data.root) / "episodes"
        if not converted.exists():
            convert_shards(data.root, converted, task_set=config.task_set, progress=config.progress)
        store = EpisodeStore(converted, verify=data.verify)
    elif data.root and not (Path(data.root) / config.task_set).exists() and not data.download:
        raise FileNotFoundError(
            f"No data in {data.root}: expected the published chunk_*.pt shards of {config.task_set}, or the "
            "manifest.json of converted or collected episodes. Check data.root; data.download=true fetches the "
            "published shards."
        )
    else:
        store = TDMPC2ExperienceReplay(config.task_set, root=data.root, download=data.download).store
    if store.manifest.task_set != config.task_set:
        raise ValueError(
            f"The run is configured for task_set={config.task_set}, but the data in {store.root} are of "
            f"{store.manifest.task_set}: choose task_set={store.manifest.task_set} or other data."
        )
    store.select(tasks)
    return store


def family(suite: str | None) -> str:
    """Of a task's suite, what settings are told apart by: ``metaworld`` or ``dm_control``."""
    return "metaworld" if suite == "metaworld" else "dm_control"
