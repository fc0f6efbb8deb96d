"""The quickstart: a world model that comes with the package, and the start states that policy extraction needs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from torchrl_pwm._utils.door import pack_safetensors
from torchrl_pwm.modules.checkpoints import QUICKSTART_FILE, read_quickstart
from torchrl_pwm.modules.world_model import PWMWorldModel

__all__ = ["QUICKSTART_FILE", "Quickstart", "load_quickstart", "pack_quickstart"]


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """A world model of a few tasks, ready for extraction.

    Args:
        world_model: the model, frozen, with the sizes of its task set.
        task_set: name of the task set whose observation and action sizes and task indices it has.
        starts: start states [N] of each task: ``observation`` [N, O], the data's ``action`` [N, A] there, ``task`` [N].
        recorded: how many of a task's start states, the first ones, are of the data's behaviour; the others are of
            episodes that earlier policies played, with noise.
        behavior: what the data's behaviour earned in each task, as
            :meth:`EpisodeStore.statistics <torchrl_pwm.data.EpisodeStore.statistics>` has it.
        source: how model and data were made.
    """

    world_model: PWMWorldModel
    task_set: str
    starts: dict[str, TensorDict]
    recorded: dict[str, int]
    behavior: dict[str, dict[str, Any]]
    source: dict[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.starts)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Per task: what is known of the data's behaviour."""
        return self.behavior


def load_quickstart(file: str | os.PathLike[str] | None = None) -> Quickstart:
    """Reads the quickstart of the package, or another file of its form; no code is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another form.

    Examples:
        >>> quickstart = load_quickstart()
        >>> len(quickstart.tasks) >= 8, quickstart.world_model.num_tasks
        (True, 80)
    """
    contents = read_quickstart(file)
    model = PWMWorldModel.from_tdmpc2(contents.weights, **contents.options).requires_grad_(False)
    starts = {task: _padded(*states, model) for task, states in contents.starts.items()}
    recorded = {task: contents.recorded.get(task, len(states)) for task, states in starts.items()}
    return Quickstart(model, contents.task_set, starts, recorded, contents.behavior, contents.source)


def pack_quickstart(
    world_model: PWMWorldModel,
    starts: Mapping[str, TensorDict],
    behavior: Mapping[str, Mapping[str, Any]],
    *,
    task_set: str,
    source: Mapping[str, Any],
    recorded: Mapping[str, int] | None = None,
) -> bytes:
    """The bytes of a quickstart file: safetensors, with the sizes and the provenance in its header.

    Args:
        world_model: the model; all of it is stored, and which sizes it has.
        starts: start states of each task, as :func:`~torchrl_pwm.data.start_states` draws them; stored in half
            precision, without padding.
        behavior: statistics of the data of the same tasks.
        task_set: name of the task set.
        source: anything worth knowing, as plain numbers, strings, lists and dictionaries.
        recorded: how many of each task's start states, the first ones, are of the data's behaviour; default: all.

    Raises:
        ValueError: if starts and statistics are not of the same tasks.
    """
    if set(starts) != set(behavior):
        raise ValueError(f"starts are of {sorted(starts)}, statistics of {sorted(behavior)}: give the same tasks")
    tensors = {f"model.{name}": value.detach().cpu() for name, value in world_model.state_dict().items()}
    for task, states in starts.items():
        observation, action = states["observation"].cpu(), states["action"].cpu()
        if world_model.action_masks is not None:
            # the padding holds random numbers in collected as in published data
            action = action * world_model.action_masks[int(states["task"][0])].cpu()
        tensors[f"starts.{task}.observation"] = _without_padding(observation).half()
        tensors[f"starts.{task}.action"] = _without_padding(action).half()
    header = {
        "task_set": task_set,
        "model": _model_options(world_model),
        "arguments": world_model.constructor_arguments,
        "indices": {task: int(states["task"][0]) for task, states in starts.items()},
        "behavior": {task: dict(behavior[task]) for task in starts},
        "recorded": {task: len(states) for task, states in starts.items()} | dict(recorded or {}),
        "source": dict(source),
    }
    return pack_safetensors(tensors, {"quickstart": json.dumps(header)})


def _model_options(world_model: PWMWorldModel) -> dict[str, Any]:
    """What readers of the first versions need beside the weights."""
    arguments = world_model.constructor_arguments
    return {name: arguments[name] for name in ("action_dims", "simnorm_dim", "vmin", "vmax")}


def _without_padding(entry: Tensor) -> Tensor:
    """[N, K] without the last columns that are zero throughout."""
    used = entry.abs().amax(0).nonzero()
    return entry[:, : int(used.max()) + 1 if len(used) else 1]


def _padded(index: int, observation: Tensor, action: Tensor, model: PWMWorldModel) -> TensorDict:
    """The start states of a task, padded with zeros to the sizes of the model."""
    states = TensorDict({"task": torch.full((len(observation),), index, dtype=torch.int64)}, [len(observation)])
    for key, entry, size in (("observation", observation, model.observation_dim), ("action", action, model.action_dim)):
        states.set(key, functional.pad(entry.float(), (0, size - entry.shape[1])))
    return states
