"""Encoding of observations with a world model, for the transform and the imagined env."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_pwm.modules.multitask import align_task


def check_model(model: Any, *forms: str) -> None:
    """Raises a TypeError unless ``model`` is a module with these tensor forms."""
    missing = [form for form in forms if not callable(getattr(model, form, None))]
    if missing or not isinstance(model, nn.Module):
        raise TypeError(
            f"Expected a PWMWorldModel or a module with its tensor forms {', '.join(forms)}, found "
            f"{type(model).__name__}{' without ' + ', '.join(missing) if missing else ', which is no nn.Module'}."
        )


@torch.no_grad()
def encode(model: Any, observation: Tensor, task: Tensor | int | None) -> Tensor:
    """The latent ``[*, D]`` of ``observation`` [*, O], without gradient and on the observation's device.

    The model stays where it is and keeps its dtype: the observation goes to it.
    """
    at_model = observation.to(reference_tensor(model))
    if isinstance(task, Tensor):
        batch = observation.shape[: observation.ndim - len(observation_shape(model, observation.shape[-1:]))]
        task = align_task(task, batch).to(at_model.device)
    return model.encode_observation(at_model, task).to(observation.device)


def observation_shape(model: Any, default: torch.Size) -> torch.Size:
    """The shape of one observation of a model, or ``default`` of one that does not tell."""
    return torch.Size(getattr(model, "observation_shape", default))


def reference_tensor(model: nn.Module) -> Tensor:
    """A tensor with the model's device and dtype."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return tensor
    return torch.zeros(())


def needs_task(model: Any) -> bool:
    """Whether the model has several tasks."""
    return num_tasks(model) > 0


def num_tasks(model: Any) -> int:
    """Tasks of a model; 0 of one without."""
    return int(getattr(model, "num_tasks", 0) or 0)
