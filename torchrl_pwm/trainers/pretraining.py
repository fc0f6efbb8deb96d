"""The world model of a run: given, or trained on its data, and improved in rounds with its policies' own episodes."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torchrl._utils import logger as torchrl_logger
from torchrl.record.loggers import get_logger

from torchrl_pwm.data import EpisodeStore, ReplayMixture, TDMPC2ExperienceReplay, collect_dataset
from torchrl_pwm.data.statistics import observation_statistics
from torchrl_pwm.envs import WorldModelWrapper, get_task_set
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.modules.quickstart import QUICKSTART_FILE
from torchrl_pwm.trainers.checkpoint import replace_file
from torchrl_pwm.trainers.disagreement import disagreement_file, save_disagreement, train_disagreement
from torchrl_pwm.trainers.extraction import load_actor
from torchrl_pwm.trainers.models import choose_device, load_world_model, make_world_model
from torchrl_pwm.trainers.pool import extract_policies
from torchrl_pwm.trainers.stopwatch import Stopwatch
from torchrl_pwm.trainers.world_model import WorldModelTrainer


def prepare_world_model(config: DictConfig, folder: Path, store: EpisodeStore | None, tasks: list[str]) -> Path:
    """The file of the frozen model: the given checkpoint, or one that is trained here."""
    if config.checkpoint == "quickstart":
        return QUICKSTART_FILE
    if config.checkpoint:
        return Path(config.checkpoint).absolute()
    assert store is not None
    file = folder / "world_model" / "world_model.pt"
    if file.exists():
        return file
    torch.manual_seed(config.seed)
    model = make_world_model(config)
    if config.world_model.normalize_observations:
        model.set_observation_statistics(*observation_statistics(store))
    replay = TDMPC2ExperienceReplay(
        store.root,
        config.world_model.batch_size,
        slice_len=config.world_model.slice_len,
        tasks=tasks,
        seed=config.seed,
    )
    torchrl_logger.info(f"world model: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tasks)} tasks")
    return train_world_model(config, file.parent, model, replay, iterations=config.world_model.iterations)


def train_world_model(
    config: DictConfig,
    folder: Path,
    model: PWMWorldModel,
    replay: TDMPC2ExperienceReplay | ReplayMixture,
    *,
    iterations: int,
) -> Path:
    """Trains a model, or goes on where that was interrupted, and returns its file ``world_model.pt``."""
    settings, device = config.world_model, choose_device(config.device)
    loss = instantiate(config.model_loss, model.requires_grad_(True).to(device))
    trainer = WorldModelTrainer(
        loss,
        replay,
        iterations=iterations,
        optimization_stepper=instantiate(config.model_stepper, loss, iterations=iterations),
        device=device,
        logger=get_logger(config.logger, str(folder.parent), folder.name),
        log_interval=settings.log_interval,
        stopwatch=Stopwatch(),
        save_folder=folder / "checkpoint",
        save_interval=settings.save_interval,
        progress_bar=config.progress,
    )
    trainer.resume(required=False)
    trainer.train()
    buffer = io.BytesIO()
    torch.save({"model": model.cpu().state_dict()}, buffer)
    replace_file(folder / "world_model.pt", buffer.getvalue())
    return folder / "world_model.pt"


def improve_world_model(config: DictConfig, folder: Path, store: EpisodeStore, file: Path, tasks: list[str]) -> Path:
    """Rounds of extraction, collection with the policies, and training on what they met; returns the last model's file.

    A policy visits what the data do not hold, above all where the model promises too much. Each round trains on with
    ``rounds.share`` of every batch from the episodes of all rounds so far.
    """
    settings = config.rounds
    hasty: DictConfig = OmegaConf.merge(config, {"seeds": 1, **settings.overrides})  # type: ignore[assignment]
    task_set = get_task_set(config.task_set)
    recent: list[EpisodeStore] = []
    for number in range(1, settings.count + 1):
        here = folder / "rounds" / str(number)
        extract_policies(hasty, here, Path(store.root), file, tasks)
        model = load_world_model(config, file)
        recent.append(
            collect_dataset(
                tasks,
                here / "data",
                episodes={task: settings.episodes[family(task_set[task].suite)] for task in tasks},
                behavior="policy",
                policy={task: load_actor(hasty, model, here, task) for task in tasks},
                transform=WorldModelWrapper(model),
                noise=list(settings.noise),
                task_set=config.task_set,
                seed=config.seed + number,
                workers=config.workers,
                progress=config.progress,
            )
        )
        size = config.world_model.batch_size
        share = max(round(settings.share * size / number), 1)
        replays = [
            TDMPC2ExperienceReplay(
                data.root, batch, slice_len=config.world_model.slice_len, tasks=tasks, seed=config.seed + number
            )
            for data, batch in [(store, max(size - number * share, 1)), *((data, share) for data in recent)]
        ]
        file = train_world_model(
            config, here / "world_model", model, ReplayMixture(replays), iterations=settings.iterations
        )
    return file


def prepare_disagreement(config: DictConfig, store: EpisodeStore, file: Path, tasks: list[str]) -> None:
    """Trains the ensemble of the model in ``file`` beside it, unless it is there."""
    target = disagreement_file(file)
    if target.exists():
        return
    settings = config.world_model
    replay = TDMPC2ExperienceReplay(
        store.root, settings.batch_size, slice_len=settings.slice_len, tasks=tasks, seed=config.seed
    )
    ensemble = train_disagreement(
        load_world_model(config, file),
        replay,
        iterations=settings.disagreement_iterations,
        seed=config.seed,
        progress=config.progress,
    )
    save_disagreement(ensemble, target)


def latest_world_model(folder: Path) -> Path:
    """The file of a run's last world model.

    Raises:
        FileNotFoundError: if the run has none.
    """
    rounds = sorted((folder / "rounds").glob("*/world_model/world_model.pt"), key=lambda file: int(file.parts[-3]))
    file = rounds[-1] if rounds else folder / "world_model" / "world_model.pt"
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} holds no world model: expected {file}, which a run writes when it is trained."
        )
    return file


def family(suite: str) -> str:
    """Of a task's suite, what settings are told apart by: ``metaworld`` or ``dm_control``."""
    return "metaworld" if suite == "metaworld" else "dm_control"
