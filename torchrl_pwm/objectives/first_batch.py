"""What the numbers of a loss's first batch must be, read once: one wait for the device, none afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_pwm._utils.devices import readable
from torchrl_pwm.modules.multitask import known_task

#: Actions may pass their bounds by rounding.
_TOLERANCE = 1e-4
_LARGEST_WHOLE = 2**24  # up to which float32 has every whole number


class FirstBatch:
    """Checks of numbers that a loss makes once, each at the first batch that has its entries.

    Shapes and dtypes cost nothing and are checked at every batch elsewhere. A batch that is refused is not the last one
    that is looked at. Compiled code has no checks: call a loss once before it is compiled, as its trainers do.
    """

    def __init__(self) -> None:
        self._done: set[str] = set()

    def due(self, name: str, *values: Tensor | None) -> bool:
        """Whether the check ``name`` has still to be made, and can be."""
        return name not in self._done and readable(*values)

    def check(self, name: str, *failures: tuple[Tensor, Callable[[], str]] | None) -> None:
        """Raises ValueError with the sentence of the first flag that is set; reads all flags at once."""
        given = [failure for failure in failures if failure is not None]
        if given:
            found = torch.stack([flag.detach().reshape(()) for flag, _ in given]).tolist()
            for bad, (_, explain) in zip(found, given):
                if bad:
                    raise ValueError(explain())
        self._done.add(name)


Failure = tuple[Tensor, Callable[[], str]] | None


def outside_unit(action: Tensor, key: NestedKey, owner: object, mask: Tensor | None = None) -> Failure:
    """Whether an action [*, A] leaves [-1, 1]; entries where ``mask`` is 0 are padding."""
    own = action if mask is None else action * mask
    if not own.numel():
        return None

    def explain() -> str:
        return (
            f"{_name(owner)} needs actions in [-1, 1], found {own.min():g} to {own.max():g} under {key!r}: put "
            "torchrl.envs.transforms.ActionScaling() around the env that is collected from, and scale recorded actions "
            "by 2 * (action - low) / (high - low) - 1."
        )

    return own.abs().amax() > 1 + _TOLERANCE, explain


def own_actions(model: Any, task: Tensor | None) -> Tensor | None:
    """[*, A]: 1 where a task has an action, 0 in its padding; an index out of range is taken for the nearest."""
    masks = getattr(model, "action_masks", None)
    if masks is None:
        return None
    return masks[0 if task is None else task.clamp(0, len(masks) - 1)]


def not_representable(value: Tensor, key: NestedKey, owner: object) -> Failure:
    """Whether float64 or whole numbers lose what they say when a float32 model reads them."""
    if not value.numel() or value.dtype == torch.bool:
        return None
    if value.dtype == torch.float64:
        largest = torch.finfo(torch.float32).max
        what = "float32 holds numbers up to 3e38"
        bad = (value.isfinite() & (value.abs() > largest)).any()
    elif value.dtype in (torch.int32, torch.int64):
        largest, what = _LARGEST_WHOLE, "float32 tells whole numbers apart up to 2**24"
        bad = (value > largest).any() | (value < -largest).any()
    else:
        return None

    def explain() -> str:
        return (
            f"{_name(owner)} reads {key!r} as float32, found {value.dtype} from {value.min():g} to "
            f"{value.max():g}; {what}. Subtract an offset or scale it (times in seconds since the start, say) first."
        )

    return bad, explain


def out_of_range(task: Tensor | None, num_tasks: int, key: NestedKey, owner: object) -> Failure:
    """Whether a task index is none of the model's."""
    if task is None or not num_tasks or not task.numel():
        return None

    def explain() -> str:
        return (
            f"{_name(owner)} needs indices from 0 to {num_tasks - 1} of the model's tasks under {key!r}, found "
            f"{task.min()} to {task.max()}: number the tasks from 0, or give the model a new one with "
            "model.add_task(...)."
        )

    return (task < 0).any() | (task >= num_tasks).any(), explain


def several_tasks(task: Tensor | None, key: NestedKey, owner: object, mask: Tensor | None) -> Failure:
    """Whether a sequence of [B, T] has steps of different tasks that count."""
    if task is None:
        return None
    other = task != task[:, :1]

    def explain() -> str:
        return (
            f"{_name(owner)} needs sequences of one task each, found {int(other.any(1).sum())} of {len(task)} "
            f"with several under {key!r}: slices cross from one episode into another. Mark the last step of each "
            'episode with ("next", "done"), or give the sampler its trajectories (traj_key).'
        )

    return (other if mask is None else other & mask).any(), explain


def joined(observation: Tensor, following: Tensor, owner: object, mask: Tensor | None) -> Failure:
    """Whether steps of a sequence do not go on from the one before: rows of other envs or episodes were joined.

    Args:
        observation, following: ``[B, T, *]``, the latter of the next states.
        mask: ``[B, T]``, the steps that count.

    A transform that changes observations differently at the two places (running normalisation, random crops) breaks
    nearly all joints; a few broken ones among whole ones are joints of episodes.
    """
    if observation.shape != following.shape or observation.shape[1] < 2:
        return None
    first, second = following[:, :-1].flatten(2), observation[:, 1:].flatten(2)
    broken = ((first != second) & ~(first.isnan() & second.isnan())).any(-1)
    counted = torch.ones_like(broken) if mask is None else mask[:, 1:]
    broken = broken & counted

    def explain() -> str:
        return (
            f"{_name(owner)} needs sequences of consecutive steps of one episode, found "
            f"{int(broken.sum())} of {int(counted.sum())} steps that do not begin where the one before ended. Mark the "
            'last step of every rollout: rollout["next", "done"][-1] = True; take sequences from a sampler that knows '
            "the episodes (SliceSampler), and rows of a collector with several workers by cat_results='stack'."
        )

    count = broken.sum()
    return (count > 0) & (2 * count <= counted.sum()), explain


def states(value: Tensor, key: NestedKey, model: Any, owner: object, batch: torch.Size) -> Tensor:
    """Observations [*batch, *shape] of a model, as they are.

    Raises:
        ValueError: for further axes, which would be taken for a part of the batch.
    """
    shape = getattr(model, "observation_shape", value.shape[-1:])
    if value.shape[: value.ndim - len(shape)] != batch:
        raise ValueError(
            f"{_name(owner)} needs {key!r} of shape {[*batch, *shape]}, found {list(value.shape)}: flatten each "
            "observation with torchrl.envs.FlattenObservation, or give the model an encoder= for its shape."
        )
    return value


def as_model(value: Tensor, model: Any) -> Tensor:
    """Rewards or actions in the dtype of the model's weights."""
    dtype = next(model.parameters()).dtype
    return value if value.dtype == dtype else value.to(dtype)


def task_entry(
    tensordict: TensorDictBase, key: NestedKey, model: Any, owner: object, batch: torch.Size
) -> Tensor | None:
    """The task under ``key`` as int64 or int32 of this shape; None for a model of a single task, whatever is there.

    Raises:
        ValueError: for another dtype or shape.
    """
    task = tensordict.get(key, None)
    num_tasks = getattr(model, "num_tasks", 0)
    if task is None or not num_tasks:
        return None
    known = known_task(task, num_tasks)
    assert isinstance(known, Tensor)
    if known.shape != batch:
        hint = "; drop its last axis with task.squeeze(-1)" if known.shape == (*batch, 1) else ""
        raise ValueError(
            f"{_name(owner)} needs task indices of shape {list(batch)} under {key!r}, found {list(known.shape)}: one "
            f"for each state{hint}."
        )
    return known


def _name(owner: object) -> str:
    return getattr(owner, "__name__", type(owner).__name__)
