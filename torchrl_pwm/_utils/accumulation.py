"""Gradients of a batch, one part of it after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase

__all__ = ["accumulate_gradients", "total_loss"]


def accumulate_gradients(
    batch: TensorDictBase,
    parts: int,
    losses: Callable[[TensorDictBase], TensorDictBase],
    *,
    waits: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> TensorDictBase:
    """Adds the gradients of losses that are means over a batch, of ``parts`` equal parts of it, to the parameters'.

    What has to be kept for a gradient is that of one part at a time. The result is that of the whole batch, up to the
    order of the sums.

    Args:
        batch (TensorDictBase): [B, *], B a multiple of ``parts``.
        parts (int): number of parts.
        losses (callable): from a part to its losses, those named ``loss_*``, and metrics.

    Keyword Args:
        waits (callable): makes the context of all parts but the last, in which gradients need not be shared yet.

    Returns:
        The means of losses and metrics over the parts, detached.

    Raises:
        ValueError: if the batch cannot be divided.

    Examples:
        >>> from tensordict import TensorDict
        >>> weight = torch.nn.Parameter(torch.ones(()))
        >>> batch = TensorDict({"x": torch.arange(4.0)}, [4])
        >>> found = accumulate_gradients(batch, 2, lambda part: TensorDict({"loss_x": (weight * part["x"]).mean()}))
        >>> found["loss_x"], weight.grad
        (tensor(1.5000), tensor(1.5000))
    """
    if len(batch) % parts:
        raise ValueError(
            f"accumulate={parts} makes an update of {parts} equal parts, found a batch of {len(batch)} sequences (of "
            f"one process): choose a batch_size that is a multiple of accumulate, times the number of processes."
        )
    means: list[TensorDictBase] = []
    for number, part in enumerate(batch.split(len(batch) // parts) if parts > 1 else [batch], 1):
        with contextlib.nullcontext() if number == parts else waits():
            found = losses(part)
            total = total_loss(found)
            (total / parts if parts > 1 else total).backward()
        means.append(found.detach())
    if parts == 1:
        return means[0]
    return means[0].apply(lambda *values: torch.stack(values).mean(0), *means[1:])


def total_loss(losses: TensorDictBase) -> Any:
    """The sum of what is named ``loss_*``."""
    return sum(value for key, value in losses.items() if key.startswith("loss_"))
