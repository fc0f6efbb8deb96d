"""The world model of a run: made, loaded and checked as its configuration says."""

from __future__ import annotations

import os
from typing import Any

import torch
from hydra.utils import instantiate

from torchrl_pwm.envs import TaskSet, get_task_set
from torchrl_pwm.modules import PWMWorldModel, load_quickstart


def make_world_model(config: Any) -> PWMWorldModel:
    """A new model with the sizes of the configured task set."""
    task_set = get_task_set(config.task_set)
    return instantiate(
        config.model,
        observation_dim=task_set.observation_dim,
        action_dim=task_set.action_dim,
        num_tasks=len(task_set),
        action_dims=list(task_set.action_dims),
    )


def load_world_model(config: Any, file: str | os.PathLike[str]) -> PWMWorldModel:
    """The frozen model of a run, from the checkpoint it was given or the file it trained.

    What the weights do not tell, such as the range of the bins, is the configuration's.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its layout is not known or its sizes are not those of the configured task set.
    """
    if config.checkpoint == "quickstart":
        return load_quickstart(file).world_model
    if not config.checkpoint:
        model = make_world_model(config)
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["model"])
        return model.requires_grad_(False)
    task_set = get_task_set(config.task_set)
    unsaid = unsaid_sizes(config)
    check_sizes(PWMWorldModel.from_tdmpc2(file, **unsaid), task_set, file)
    return PWMWorldModel.from_tdmpc2(file, action_dims=task_set.action_dims, **unsaid).requires_grad_(False)


def unsaid_sizes(config: Any) -> dict[str, Any]:
    """What the weights of a checkpoint do not tell, as configured."""
    return {key: config.model[key] for key in ("simnorm_dim", "vmin", "vmax") if key in config.model}


def check_sizes(model: PWMWorldModel, task_set: TaskSet, source: Any, *, num_tasks: int | None = None) -> None:
    """Raises ValueError if the model's sizes are not those of the task set, with ``num_tasks`` tasks or all."""
    found = (model.observation_dim, model.action_dim, model.num_tasks)
    expected = (task_set.observation_dim, task_set.action_dim, len(task_set) if num_tasks is None else num_tasks)
    if found != expected:
        names = ("observation size", "action size", "number of tasks")
        wrong = ", ".join(f"{name} {f} (expected {e})" for name, f, e in zip(names, found, expected) if f != e)
        raise ValueError(
            f"The checkpoint {source} does not fit {task_set.name}: {wrong}. "
            "Choose the task_set it was trained on, or another checkpoint."
        )


def choose_device(device: str | None) -> str:
    """The device asked for, or the best there is."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
