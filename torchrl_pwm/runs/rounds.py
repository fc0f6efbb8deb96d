"""Rounds: extraction, collection with the policies, and world-model training on what they met."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from torchrl_pwm.data import EpisodeStore, ReplayMixture, TDMPC2ExperienceReplay, collect_dataset
from torchrl_pwm.envs import WorldModelWrapper, get_task_set
from torchrl_pwm.runs.data import family
from torchrl_pwm.runs.extraction import extract_all, load_actor
from torchrl_pwm.runs.world_model import load_world_model, measured_states, train_world_model


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
        extract_all(hasty, here, Path(store.root), file, tasks)
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
            config,
            here / "world_model",
            model,
            ReplayMixture(replays),
            iterations=settings.iterations,
            states=measured_states(store, tasks, seed=config.seed),
            names=task_set.names,
        )
    return file
