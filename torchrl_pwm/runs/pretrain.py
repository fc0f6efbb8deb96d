"""A run that trains a world model and nothing else, in one process or in several that a launcher started."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchrl import torchrl_logger

from torchrl_pwm._utils.devices import choose_device, torch_threads
from torchrl_pwm._utils.door import read_tensors
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.torchrun import launched, rank
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.runs.clock import RunClock
from torchrl_pwm.runs.data import open_data, select_tasks
from torchrl_pwm.runs.folder import claim_folder, finished
from torchrl_pwm.runs.world_model import make_world_model, prepare_world_model, read_representation
from torchrl_pwm.trainers.ranks import Ranks, joined_ranks


def launched_again(name: str, config: DictConfig) -> DictConfig:
    """The configuration of a command that a launcher started: it goes on where the folder already holds the run.

    A launcher starts all processes again with the same command when one has died.

    Raises:
        ValueError: for a command that runs in one process, or without a folder, which all processes have to know.
    """
    if name != "pretrain":
        raise ValueError(
            f"torchrun is for pretrain, found {name}, which divides its work by itself: start it alone, or take the "
            "world model that pretrain made with checkpoint=FOLDER/world_model/world_model.pt."
        )
    if rank():
        torchrl_logger.setLevel(logging.WARNING)
    if not (config.folder or config.resume):
        raise ValueError("torchrun starts several processes, which all have to know the run's folder: give folder=.")
    if config.folder and not config.resume and (Path(config.folder) / "config.yaml").exists():
        config.resume = config.folder
    return config


def run_pretraining(config: DictConfig, folder: Path) -> Path:
    """Trains the world model of the run in ``folder`` as far as it is not, and returns the path of its summary.

    Raises:
        FileNotFoundError, ValueError: if something that the configuration names is missing, unknown or does not fit.
    """
    tasks = _check(config)
    # Shards need a group, if only of one.
    several = launched() or config.distributed == "fsdp"
    joined = joined_ranks(choose_device(config.device)) if several else contextlib.nullcontext()
    with torch_threads(config.threads), joined as ranks:
        return _pretrain(config, folder, tasks, ranks)


def _pretrain(config: DictConfig, folder: Path, tasks: list[str], ranks: Ranks | None) -> Path:
    summary = folder / "summary.json"
    done = finished(config, folder) is not None
    if done if ranks is None else ranks.agreed(done):
        return summary
    with RunClock(folder) as clock:
        return _train(config, folder, tasks, ranks, clock)


def _train(config: DictConfig, folder: Path, tasks: list[str], ranks: Ranks | None, clock: RunClock) -> Path:
    first, summary = ranks is None or ranks.first, folder / "summary.json"
    store = open_data(config, tasks) if first else None  # which may download and convert it
    if first:
        claim_folder(config, folder)
    if ranks is not None:
        ranks.wait()
    store = store or open_data(config, tasks)
    file = prepare_world_model(config, folder, store, tasks, ranks)
    if first:
        _write_summary(config, folder, file, tasks, ranks, seconds=clock.seconds)
    return summary


def _check(config: DictConfig) -> list[str]:
    """The run's tasks, if its data and model can be had."""
    if config.data.source not in ("open", "published"):
        raise ValueError(
            f"pretrain learns from recorded episodes, data=open or data=published, found {config.data.source}: collect "
            "them first, for instance with `torchrl-pwm mt80 data=collect`, whose folder holds them in data/."
        )
    if config.checkpoint:
        raise ValueError(f"pretrain makes a world model, found checkpoint={config.checkpoint}: leave it out.")
    with torch.device("meta"):
        make_world_model(config)
    return select_tasks(config.task, get_task_set(config.task_set))


def _write_summary(
    config: DictConfig, folder: Path, file: Path, tasks: list[str], ranks: Ranks | None, *, seconds: float
) -> None:
    """``summary.json``, and ``report.md`` with what comes next."""
    weights = read_tensors(file, what="world model")["model"]
    name, of_rows = file.relative_to(folder).as_posix(), config.world_model
    content: dict[str, Any] = {
        "command": "pretrain",
        "world_model": name,
        "parameters": sum(value.numel() for key, value in weights.items() if value.is_floating_point()),
        "tasks": tasks,
        "iterations": of_rows.iterations,
        "batch_size": of_rows.batch_size,
        "processes": 1 if ranks is None else ranks.count,
        "distributed": None if ranks is None else config.distributed,
        "seconds": round(seconds, 1),
        "representation": read_representation(file),
        "config": OmegaConf.to_container(config, resolve=True),
    }
    lines = [
        f"# World model of {len(tasks)} task{'s' * (len(tasks) != 1)}",
        "",
        f"{content['iterations']:,} updates of {content['batch_size']:,} sequences, by {content['processes']} "
        f"process{'es' * (content['processes'] != 1)}. Losses along the way are in `{Path(name).parent}`.",
        "",
        "Policies from it:",
        "",
        f"    torchrl-pwm mt80 checkpoint={file} data={config.data.source} "
        f"data.root={config.data.root} task_set={config.task_set} task={tasks[0]}",
    ]
    replace_file(folder / "report.md", "\n".join([*lines, ""]).encode())
    replace_file(folder / "summary.json", json.dumps(content, indent=2).encode())
