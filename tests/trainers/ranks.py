"""Tiny trainings by several processes, and by one to compare them with."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchrl.record.loggers import CSVLogger

from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss, TDMPC2ExperienceReplay, WorldModelTrainer
from torchrl_pwm.data import EpisodeSliceSampler
from torchrl_pwm.trainers import WorldModelOptimizationStepper
from torchrl_pwm.trainers.distributed import DistributedWorldModelStepper, DistributedWorldModelTrainer
from torchrl_pwm.trainers.ranks import Ranks, joined_ranks, whole_state

ITERATIONS, BATCH = 6, 8


def make_model() -> PWMWorldModel:
    """With a scalar reward, whose one row cannot be shared out evenly, and embeddings that have to be cut."""
    torch.manual_seed(3)
    model = PWMWorldModel(39, 6, latent_dim=16, encoder_units=(16,), units=(16, 16), num_tasks=80, task_dim=4)
    model._task_emb.weight.data.mul_(100)
    return model


def train(
    root: Path,
    folder: Path,
    *,
    ranks: Ranks | None = None,
    engine: Any = "ddp",
    until: int = ITERATIONS,
    accumulate: int = 1,
    prefetch: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Trains, or goes on, ``until`` an iteration; the losses of all, in processes that log, and the weights."""
    loss = PWMWorldModelLoss(make_model())
    options |= {"iterations": ITERATIONS, "final_lr": 1e-5, "lr": 1e-2, "clip": 0.5, "accumulate": accumulate}
    sampler = EpisodeSliceSampler(4, part=None if ranks is None else (ranks.rank, ranks.count))
    replay = TDMPC2ExperienceReplay(root, BATCH, sampler=sampler, seed=2, prefetch=prefetch)
    further: dict[str, Any] = {"save_folder": folder / "checkpoint", "save_interval": 2, "log_interval": 1}
    further |= {"logger": CSVLogger("log", log_dir=str(folder)), "iterations": ITERATIONS, "progress_bar": False}
    trainer: Any
    if ranks is None:
        stepper = WorldModelOptimizationStepper(loss, **options)
        trainer = WorldModelTrainer(loss, replay, optimization_stepper=stepper, **further)
    else:
        shared = DistributedWorldModelStepper(loss, ranks=ranks, engine=engine, **options)
        trainer = DistributedWorldModelTrainer(loss, replay, optimization_stepper=shared, **further)
    trainer.resume(required=False)
    trainer.iterations = until
    trainer.train()
    return {"weights": whole_state(loss.world_model), "logged": logged(folder)}


def logged(folder: Path) -> dict[str, list[float]]:
    """What was logged, by metric."""
    files = sorted((folder / "log" / "scalars").glob("*.csv"))
    return {file.stem: [float(row.split(",")[1]) for row in file.read_text().splitlines()] for file in files}


def on_ranks(count: int, job: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``job(ranks, *arguments)`` returns in each of ``count`` processes of one group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trainers.ranks"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    queue: Any = context.Queue()
    processes = [
        context.Process(target=_work, args=(rank, {**said, "RANK": str(rank)}, queue, job, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(queue.get(timeout=240) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    errors = [value for value in found.values() if isinstance(value, str)]
    assert not errors, "\n".join(errors)
    return [found[rank] for rank in range(count)]


def _work(rank: int, said: dict[str, str], queue: Any, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(said)
    torch.set_num_threads(1)
    try:
        with joined_ranks("cpu") as ranks:
            found = job(ranks, *arguments)
            queue.put((rank, _numbers(found)))
    except BaseException:
        queue.put((rank, traceback.format_exc()))
        raise


def _numbers(found: Any) -> Any:
    """Tensors as arrays, which no shared memory is needed for."""
    if isinstance(found, torch.Tensor):
        return found.detach().numpy()
    return {key: _numbers(value) for key, value in found.items()} if isinstance(found, dict) else found
