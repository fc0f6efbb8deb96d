"""Numbers that are not finite: where they are, and the error that says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
from tensordict import TensorDictBase
from torch import Tensor


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether every entry of every tensor is finite."""
    return bool(torch.stack([value.detach().isfinite().all() for value in values]).all())


def describe_batch(batch: TensorDictBase) -> str:
    """The entry of a batch and the tasks that are not finite, if there are any."""
    for key, value in batch.items(include_nested=True, leaves_only=True):
        rows = ~value.isfinite().reshape(len(value), -1).all(1)
        if rows.any():
            task = batch.get("task", None)
            named = "" if task is None else f" of task {sorted(set(task[rows].flatten().tolist()))}"
            return f"the batch has non-finite {key}{named} in {int(rows.sum())} of {len(rows)} rows: check the data"
    return "every entry of the batch is finite, so the networks have diverged: lower the learning rate"


def non_finite(
    name: str, update: int, numbers: Mapping[str, float | Tensor], *, where: str, changed: bool = False
) -> FloatingPointError:
    """The error of an update whose numbers are not finite, with ``where`` they may come from."""
    listed = ", ".join(f"{number} {float(value):g}" for number, value in numbers.items())
    state = "Earlier steps of this update were taken" if changed else "No parameter was changed"
    return FloatingPointError(
        f"Update {update} of the {name}: expected finite numbers, found {listed}; {where}. {state}."
    )


def raise_non_finite(*arguments: Any, **options: Any) -> NoReturn:
    """Raises :func:`non_finite`."""
    raise non_finite(*arguments, **options)
