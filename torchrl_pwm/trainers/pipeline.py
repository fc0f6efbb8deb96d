"""The whole of PWM in one run: data, world model, policies, evaluation, report.

A run lives in a folder with its configuration, metrics, checkpoints and results; each stage is skipped when its result
is there and goes on from its checkpoint when it was interrupted.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torchrl._utils import logger as torchrl_logger

from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay, collect_dataset, convert_shards
from torchrl_pwm.envs import TaskSet, get_task_set
from torchrl_pwm.modules import QUICKSTART_FILE, load_quickstart
from torchrl_pwm.trainers.baselines import baseline_settings
from torchrl_pwm.trainers.folders import claim_folder
from torchrl_pwm.trainers.models import load_world_model, make_world_model
from torchrl_pwm.trainers.pool import extract_policies
from torchrl_pwm.trainers.pretraining import (
    family,
    improve_world_model,
    prepare_disagreement,
    prepare_world_model,
)
from torchrl_pwm.trainers.report import write_report
from torchrl_pwm.trainers.unlike_published import check_comparison


def run_pipeline(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    Raises:
        FileNotFoundError, ValueError, ImportError: if something that the configuration names is missing, unknown or
            does not fit, before the folder is made.
    """
    start = time.perf_counter()
    tasks = check_config(config)
    source = config.data.source
    store = open_data(config, tasks) if source in ("published", "open") else None
    claim_folder(config, folder)
    torchrl_logger.info(f"run folder: {folder}")
    if config.threads:
        torch.set_num_threads(config.threads)
    if source == "collect":
        store = collect_data(config, folder, tasks)
    model_file = prepare_world_model(config, folder, store, tasks)
    if config.rounds.count and store is not None:
        model_file = improve_world_model(config, folder, store, model_file, tasks)
    if config.loss.disagreement_coef and store is not None:
        prepare_disagreement(config, store, model_file, tasks)
    results = extract_policies(config, folder, None if store is None else Path(store.root), model_file, tasks)
    behavior = load_quickstart() if store is None else store
    return write_report(config, folder, behavior, model_file, results, seconds=time.perf_counter() - start)


def check_config(config: DictConfig) -> list[str]:
    """The run's tasks, if its names, packages and checkpoint are right.

    Raises:
        FileNotFoundError, ValueError, ImportError: if one is not.
    """
    task_set = get_task_set(config.task_set)
    tasks = select_tasks(config.task, task_set)
    if config.seeds < 1:
        raise ValueError(f"seeds is the number of policies per task and at least 1, found {config.seeds}")
    if config.extraction.select not in ("last", "best"):
        raise ValueError(f"extraction.select must be last or best, found {config.extraction.select!r}")
    check_comparison(config)
    baseline_settings(config)
    check_simulators(tasks, task_set)
    if config.data.source == "quickstart":
        _check_quickstart(config, tasks)
    if config.checkpoint == "quickstart":
        load_world_model(config, QUICKSTART_FILE)
    elif config.checkpoint:
        load_world_model(config, config.checkpoint)
    else:
        with torch.device("meta"):
            make_world_model(config)
    return tasks


def check_simulators(tasks: list[str], task_set: TaskSet) -> None:
    """Raises ImportError if the simulator of a task is not installed."""
    for package in sorted({"metaworld" if task_set[task].suite == "metaworld" else "dm_control" for task in tasks}):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'these tasks need {package}, which is not installed; pip install "torchrl-pwm[mt80]"')


def _check_quickstart(config: DictConfig, tasks: list[str]) -> None:
    quickstart = load_quickstart()
    missing = [task for task in tasks if task not in quickstart.tasks]
    if missing or config.task_set != quickstart.task_set:
        raise ValueError(
            f"The world model that comes with the package knows {', '.join(quickstart.tasks)} of "
            f"{quickstart.task_set}, not {', '.join(missing) or config.task_set}. Choose among these, or train a "
            "model: preset=from_scratch, or data=published with the published data."
        )
    if config.checkpoint != "quickstart" or config.rounds.count or config.loss.disagreement_coef:
        raise ValueError(
            "data=quickstart has start states and no episodes: it goes with checkpoint=quickstart, rounds.count=0 and "
            f"loss.disagreement_coef=0, found {config.checkpoint}, {config.rounds.count} and "
            f"{config.loss.disagreement_coef}."
        )


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
