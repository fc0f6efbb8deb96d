"""The whole of PWM in one run: data, world model, policies, evaluation, report.

A run lives in a folder with its configuration, metrics, checkpoints and results; each stage is skipped when its result
is there and goes on from its checkpoint when it was interrupted.
"""

from __future__ import annotations

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
from torchrl_pwm.data.statistics import observation_statistics
from torchrl_pwm.envs import TaskSet, get_task_set
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.trainers.checkpoint import has_checkpoint, replace_file
from torchrl_pwm.trainers.extraction import ExtractionJob, Report, extract_policy
from torchrl_pwm.trainers.report import write_report
from torchrl_pwm.trainers.world_model import WorldModelTrainer


def run_pipeline(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``."""
    start = time.perf_counter()
    task_set = get_task_set(config.task_set)
    tasks = select_tasks(config.task, task_set)
    if config.threads:
        torch.set_num_threads(config.threads)
    store = prepare_data(config, folder, tasks)
    model_file = prepare_world_model(config, folder, store, task_set, tasks)
    results = extract_policies(config, folder, store, model_file, tasks)
    return write_report(config, folder, store, model_file, results, seconds=time.perf_counter() - start)


def select_tasks(task: str | Iterable[str], task_set: TaskSet) -> list[str]:
    """Task names from a name, several names, or the name of a whole set.

    Raises:
        ValueError: if a name is not of the task set.
    """
    if isinstance(task, str):
        task = task_set.names if task == task_set.name else task.split(",")
    return [task_set[name].name for name in task]


def prepare_data(config: DictConfig, folder: Path, tasks: list[str]) -> EpisodeStore:
    """Opens, converts or collects the data.

    Raises:
        FileNotFoundError, ValueError: if the data are not there or not of the configured set.
    """
    data = config.data
    if data.source == "collect":
        root = Path(data.root) if data.root else folder / "data"
        suites = {name: get_task_set(config.task_set)[name].suite for name in tasks}
        families = {name: "metaworld" if suite == "metaworld" else "dm_control" for name, suite in suites.items()}
        return collect_dataset(
            tasks,
            root,
            episodes={name: data.episodes[family] for name, family in families.items()},
            behavior={name: data.behavior[family] for name, family in families.items()},
            noise=list(data.noise),
            task_set=config.task_set,
            seed=config.seed,
            workers=config.workers,
            progress=config.progress,
        )
    if data.root and (Path(data.root) / "manifest.json").exists():
        store = EpisodeStore(data.root, verify=data.verify)
    elif data.root and any(Path(data.root).glob("chunk_*.pt")):
        converted = Path(data.root) / "episodes"
        if not converted.exists():
            convert_shards(data.root, converted, task_set=config.task_set, progress=config.progress)
        store = EpisodeStore(converted, verify=data.verify)
    else:
        store = TDMPC2ExperienceReplay(config.task_set, root=data.root, download=data.download).store
    if store.manifest.task_set != config.task_set:
        raise ValueError(
            f"The run is configured for task_set={config.task_set}, but the data in {store.root} are of "
            f"{store.manifest.task_set}: choose task_set={store.manifest.task_set} or other data."
        )
    store.select(tasks)
    return store


def prepare_world_model(
    config: DictConfig, folder: Path, store: EpisodeStore, task_set: TaskSet, tasks: list[str]
) -> Path:
    """The file of the frozen model: the given checkpoint, or one that is trained here.

    Raises:
        ValueError: if a given checkpoint was made for other observation, action or task numbers.
    """
    if config.checkpoint:
        check_world_model(PWMWorldModel.from_tdmpc2(config.checkpoint), task_set, config.checkpoint)
        return Path(config.checkpoint).absolute()
    file = folder / "world_model" / "world_model.pt"
    if file.exists():
        return file
    settings = config.world_model
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    model = instantiate(
        config.model,
        observation_dim=task_set.observation_dim,
        action_dim=task_set.action_dim,
        num_tasks=len(task_set),
        action_dims=list(task_set.action_dims),
    ).to(device)
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
    if has_checkpoint(folder / "world_model" / "checkpoint"):
        trainer.resume()
    torchrl_logger.info(f"world model: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tasks)} tasks")
    trainer.train()
    buffer = io.BytesIO()
    torch.save({"model": model.cpu().state_dict()}, buffer)
    replace_file(file, buffer.getvalue())
    return file


def check_world_model(model: PWMWorldModel, task_set: TaskSet, source: Any) -> None:
    """Raises ValueError if the model's sizes are not those of the task set."""
    found = (model.observation_dim, model.action_dim, model.num_tasks)
    expected = (task_set.observation_dim, task_set.action_dim, len(task_set))
    if found != expected:
        names = ("observation size", "action size", "number of tasks")
        wrong = ", ".join(f"{name} {f} (expected {e})" for name, f, e in zip(names, found, expected) if f != e)
        raise ValueError(
            f"The checkpoint {source} does not fit {task_set.name}: {wrong}. "
            "Choose the task_set it was trained on, or another checkpoint."
        )


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
    with context.Manager() as manager, ProcessPoolExecutor(workers, mp_context=context) as pool:
        messages = manager.Queue()
        futures: list[Future[dict[str, Any]]] = [pool.submit(_work, job, messages) for job in jobs]
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            while True:
                try:
                    report(*messages.get_nowait())
                except queue.Empty:
                    break
        for future in futures:
            yield future.result()


def _work(job: ExtractionJob, messages: Any) -> dict[str, Any]:
    return extract_policy(job, lambda *message: messages.put(message))


def choose_device(device: str | None) -> str:
    """The device asked for, or the best there is."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
