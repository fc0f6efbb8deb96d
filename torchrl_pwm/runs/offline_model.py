"""World model of recorded data: its training, statistics and file."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor
from torchrl import torchrl_logger

from torchrl_pwm._utils.devices import choose_device, reads_ahead
from torchrl_pwm._utils.door import load_weights
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.data.store.statistics import observation_statistics
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.runs.recordings import Recordings
from torchrl_pwm.runs.world_model import measured_states, train_world_model


def prepare_model(config: DictConfig, folder: Path, recordings: Recordings) -> PWMWorldModel:
    """The frozen world model, trained where the run has not trained it yet."""
    torch.manual_seed(config.seed)
    model = _new_model(config, recordings)
    file = folder / "world_model" / "world_model.pt"
    if not file.exists():
        settings = config.world_model
        replay = recordings.replay(
            settings.batch_size, settings.slice_len, seed=config.seed, **reads_ahead(choose_device(config.device))
        )
        torchrl_logger.info(
            f"world model: {sum(p.numel() for p in model.parameters()):,} parameters, {len(recordings.kept):,} "
            f"episodes and {len(recordings.held_out):,} held out"
        )
        train_world_model(
            config,
            file.parent,
            model,
            replay,
            iterations=settings.iterations,
            states=TensorDict.cat(
                [
                    measured_states(recordings.store, [task], seed=config.seed, episodes=recordings.measured(task))
                    for task in recordings.tasks
                ]
            ),
            names=recordings.store.task_set.names,
        )
    return load_model(config, recordings, file)


def _new_model(config: DictConfig, recordings: Recordings) -> PWMWorldModel:
    model: PWMWorldModel = instantiate(config.model)
    model.set_observation_statistics(*data_statistics(recordings.store), min_std=0.0)
    return model


def load_model(config: DictConfig, recordings: Recordings, file: Path) -> PWMWorldModel:
    """The frozen world model that a training of the run wrote."""
    model = _new_model(config, recordings)
    load_weights(model, file, what="world model", part="model")
    return model.requires_grad_(False)


def data_statistics(store: EpisodeStore) -> tuple[Tensor, Tensor]:
    """Mean and spread of each observation entry [number of tasks, O]; a spread of 1 for entries that are constant."""
    mean, std = observation_statistics(store)
    return mean, torch.where(std > 1e-6 * mean.abs().clamp_min(1e-6), std, 1.0)
