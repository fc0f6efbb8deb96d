"""The whole of PWM in one run: data, world model, policies, evaluation, report.

A run lives in a folder with its configuration, metrics, checkpoints and results; each stage is skipped when its result
is there and goes on from its checkpoint when it was interrupted.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import multiprocessing
import os
import queue
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torchrl._utils import logger as torchrl_logger
from torchrl.record.loggers import get_logger
from tqdm import tqdm

from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay, collect_dataset, convert_shards
from torchrl_pwm.data.processes import end_with_parent
from torchrl_pwm.data.statistics import observation_statistics
from torchrl_pwm.envs import TaskSet, get_task_set
from torchrl_pwm.trainers.checkpoint import replace_file
from torchrl_pwm.trainers.extraction import ExtractionJob, Report, extract_policy
from torchrl_pwm.trainers.folders import claim_folder
from torchrl_pwm.trainers.models import load_world_model, make_world_model
from torchrl_pwm.trainers.report import write_report
from torchrl_pwm.trainers.world_model import WorldModelTrainer


def run_pipeline(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    Raises:
        FileNotFoundError, ValueError, ImportError: if something that the configuration names is missing, unknown or
            does not fit, before the folder is made.
    """
    start = time.perf_counter()
    tasks = check_config(config)
    store = None if config.data.source == "collect" else open_data(config, tasks)
    claim_folder(config, folder)
    torchrl_logger.info(f"run folder: {folder}")
    if config.threads:
        torch.set_num_threads(config.threads)
    if store is None:
        store = collect_data(config, folder, tasks)
    model_file = prepare_world_model(config, folder, store, tasks)
    results = extract_policies(config, folder, store, model_file, tasks)
    return write_report(config, folder, store, model_file, results, seconds=time.perf_counter() - start)


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
    for package in sorted({"metaworld" if task_set[task].suite == "metaworld" else "dm_control" for task in tasks}):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'these tasks need {package}, which is not installed; pip install "torchrl-pwm[mt80]"')
    if config.checkpoint:
        load_world_model(config, config.checkpoint)
    else:
        with torch.device("meta"):
            make_world_model(config)
    return tasks


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
    suites = {name: get_task_set(config.task_set)[name].suite for name in tasks}
    families = {name: "metaworld" if suite == "metaworld" else "dm_control" for name, suite in suites.items()}
    return collect_dataset(
        tasks,
        Path(data.root) if data.root else folder / "data",
        episodes={name: data.episodes[family] for name, family in families.items()},
        behavior={name: data.behavior[family] for name, family in families.items()},
        noise=list(data.noise),
        task_set=config.task_set,
        seed=config.seed,
        workers=config.workers,
        progress=config.progress,
    )


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


def prepare_world_model(config: DictConfig, folder: Path, store: EpisodeStore, tasks: list[str]) -> Path:
    """The file of the frozen model: the given checkpoint, or one that is trained here."""
    if config.checkpoint:
        return Path(config.checkpoint).absolute()
    file = folder / "world_model" / "world_model.pt"
    if file.exists():
        return file
    settings = config.world_model
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    model = make_world_model(config).to(device)
    if settings.normalize_observations:
        model.set_observation_statistics(*observation_statistics(store))
    replay = TDMPC2ExperienceReplay(
        store.root, settings.batch_size, slice_len=settings.slice_len, tasks=tasks, seed=config.seed
    )
    loss = instantiate(config.model_loss, model)
    trainer = WorldModelTrainer(
        loss,
        replay,
        iterations=settings.iterations,
        optimization_stepper=instantiate(config.model_stepper, loss, iterations=settings.iterations),
        device=device,
        logger=get_logger(config.logger, str(folder), "world_model"),
        log_interval=settings.log_interval,
        save_folder=folder / "world_model" / "checkpoint",
        save_interval=settings.save_interval,
        progress_bar=config.progress,
    )
    trainer.resume(required=False)
    torchrl_logger.info(f"world model: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tasks)} tasks")
    trainer.train()
    buffer = io.BytesIO()
    torch.save({"model": model.cpu().state_dict()}, buffer)
    replace_file(file, buffer.getvalue())
    return file


def extract_policies(
    config: DictConfig, folder: Path, store: EpisodeStore, model_file: Path, tasks: list[str]
) -> list[dict[str, Any]]:
    """Extracts a policy for every task and seed, several at a time where there are several cores."""
    device = choose_device(config.device)
    count = len(tasks) * config.seeds
    cores = os.cpu_count() or 1
    workers = 1 if device != "cpu" else max(1, min(config.workers or cores, count))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    jobs = [
        ExtractionJob(
            config=plain,
            task=task,
            seed=config.seed + number,
            folder=folder / "policies" / task / f"seed-{config.seed + number}",
            data=Path(store.root),
            world_model=model_file,
            # One thread each also makes the numbers independent of how many run at once.
            threads=1 if device == "cpu" else cores,
            device=device,
        )
        for task in tasks
        for number in range(config.seeds)
    ]
    total = count * config.extraction.iterations
    with tqdm(total=total, desc="policies", unit="update", disable=not config.progress) as bar:
        if workers == 1:
            return [extract_policy(job, _Progress(bar)) for job in jobs]
        return list(_in_processes(jobs, workers, _Progress(bar)))


class _Progress:
    """Adds what the workers report to one progress bar."""

    def __init__(self, bar: tqdm) -> None:
        self.bar, self.done = bar, {}  # type: ignore[var-annotated]

    def __call__(self, name: str, done: int, metrics: Any) -> None:
        self.bar.update(done - self.done.get(name, 0))
        self.done[name] = done
        self.bar.set_postfix_str(f"{name} " + " ".join(f"{key}={value:.4g}" for key, value in metrics.items()))


def _in_processes(jobs: list[ExtractionJob], workers: int, report: Report) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(messages,)) as pool:
        futures: list[Future[dict[str, Any]]] = [pool.submit(_work, job) for job in jobs]
        waiting = set(futures)
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                with contextlib.suppress(queue.Empty):
                    while True:
                        report(*messages.get_nowait())
                for future in finished:
                    future.result()
        except BaseException:
            # What runs goes on to its end, so that finished policies are kept; what waits does not start.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        for future in futures:
            yield future.result()


_messages: Any = None  # queue to the parent, in a worker


def _start_worker(messages: Any) -> None:
    global _messages
    _messages = messages
    end_with_parent()


def _work(job: ExtractionJob) -> dict[str, Any]:
    return extract_policy(job, lambda *message: _messages.put(message))


def choose_device(device: str | None) -> str:
    """The device asked for, or the best there is."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
