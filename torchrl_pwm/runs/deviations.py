"""Protocol deviations: where data, model and settings of a run are not those of the published runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.modules import PWMWorldModel, Quickstart
from torchrl_pwm.runs.world_model import load_world_model, make_world_model

# Of the published multi-task runs. In effect they regressed on one-step targets, and their bootstrap was discounted
# once more than the paper says.
_SETTINGS: dict[str, Any] = {
    "extraction.iterations": 10_000,
    "extraction.batch_size": 512,
    "extraction.gamma": 0.99,
    "extraction.value_estimator": "TD0",
    "extraction.starts": None,
    "extraction.average": 0.0,
    "extraction.select": "last",
    "extraction.loss_of": None,
    "extraction.stepper_of": None,
    "extraction.warm_start.behavior_updates": 0,
    "extraction.warm_start.value_updates": 0,
    "loss.horizon": 16,
    "loss.bootstrap": "reference",
    "loss.reward_space": "symlog",
    "loss.behavior_coef": 0.0,
    "loss.mask_actions": False,
    "loss.disagreement_coef": 0.0,
    "stepper.actor_lr": 5e-4,
    "stepper.critic_lr": 5e-4,
    "stepper.critic_iterations": 8,
    "stepper.critic_batches": 4,
    "stepper.continued": 0.0,
    "rounds.count": 0,
    "rounds.earlier": [],
    "evaluation.episodes": 10,
}
# Of their world models, where a run trains its own.
_MODEL_SETTINGS: dict[str, Any] = {
    "model.residual": False,
    "model.decoder": False,
    "model.num_heads": 1,
    "world_model.normalize_observations": False,
}


def check_comparison(config: Any) -> None:
    """Refuses a comparison that there is not.

    Raises:
        ValueError: if ``compare`` is neither null nor ``published``, or the task set has no published results.
    """
    wanted = OmegaConf.select(config, "compare")
    if wanted not in (None, "published"):
        raise ValueError(f"compare must be null or published, found {wanted!r}")
    if wanted and get_task_set(config.task_set).name not in ("mt30", "mt80"):
        raise ValueError(f"compare=published needs task_set=mt30 or mt80, found {config.task_set}")


def protocol_deviations(config: Any, store: EpisodeStore | Quickstart, model_file: Path) -> list[str]:
    """Sentences that say where data, world model and settings of a run are not the published ones.

    Args:
        config: of the run. Settings that it does not have are not compared.
        store: the run's data.
        model_file: the run's world model.
    """
    if config.checkpoint:
        model = load_world_model(config, model_file)
    else:
        with torch.device("meta"):
            model = make_world_model(config)
    remarks = [*other_data(store), *other_size(config, model)]
    different, settings = [], _SETTINGS if config.checkpoint else {**_SETTINGS, **_MODEL_SETTINGS}
    for key, value in settings.items():
        configured = OmegaConf.select(config, key, default=value)
        if configured != value:
            shown = configured if isinstance(configured, (int, float, str)) else "given"
            different.append(f"{key}={shown} ({'null' if value is None else value})")
    if different:
        remarks.append(f"Settings unlike the published runs', theirs in brackets: {', '.join(different)}.")
    return remarks


def other_data(store: EpisodeStore | Quickstart) -> list[str]:
    """That the data are not the published ones, where they are not."""
    if not isinstance(store, EpisodeStore):
        return ["Not the published data: the start states come with the package."]
    if store.manifest.source.get("kind") != "shards":
        return [f"Not the published data: {store.num_transitions:,} transitions that were collected."]
    return []


def other_size(config: Any, model: PWMWorldModel) -> list[str]:
    """That the world model has not the published size, where it has not."""
    tasks = get_task_set(config.task_set)
    with torch.device("meta"):
        published = PWMWorldModel.from_preset(
            "48M", observation_dim=tasks.observation_dim, action_dim=tasks.action_dim, num_tasks=len(tasks)
        )
    own, known = (sum(parameter.numel() for parameter in each.parameters()) for each in (model, published))
    return [] if own == known else [f"The world model has {own:,} weights, the published 48M one {known:,}."]
