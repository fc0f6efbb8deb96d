"""Gradients of a batch, one part of it after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

__all__ = ["accumulate_gradients", "total_loss"]


def accumulate_gradients(
    batch: TensorDictBase,
    parts: int,
    losses: Callable[[TensorDictBase], TensorDictBase],
    *,
    counted: Callable[[TensorDictBase], Tensor | None] = lambda part: None,
    whole: Tensor | None = None,
    waits: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> TensorDictBase:
    """Adds the gradients of losses that are means over a batch, of ``parts`` equal parts of it, to the parameters'.

    What has to be kept for a gradient is that of one part at a time. The result is that of the whole batch, up to the
    order of the sums; running moments that a loss keeps move on with each part.

    Args:
        batch (TensorDictBase): [B, *], B a multiple of ``parts``.
        parts (int): number of parts.
        losses (callable): from a part to its losses, those named ``loss_*``, and metrics.

    Keyword Args:
        counted (callable): from a part, or the batch, to the number [] of what its means are over, which weighs the
            part; ``None`` if that is all of it.
        whole (Tensor, optional): this number of the batch; default: what is counted in it.
        waits (callable): makes the context of all parts but the last, in which gradients need not be shared yet.

    Returns:
        The means of losses and metrics over the batch, detached.

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
    if parts == 1 and whole is None:
        found = losses(batch)
        total_loss(found).backward()
        return found.detach()
    whole, means = counted(batch) if whole is None else whole, []
    weight: Any = 1 / parts
    for number, part in enumerate(batch.split(len(batch) // parts), 1):
        if whole is not None and (count := counted(part)) is not None:
            weight = count / whole
        with contextlib.nullcontext() if number == parts else waits():
            found = losses(part)
            (total_loss(found) * weight).backward()
        means.append(found.detach() * weight)
    return means[0].apply(lambda *values: torch.stack(values).sum(0), *means[1:])


def total_loss(losses: TensorDictBase) -> Any:
    """The sum of what is named ``loss_*``."""
    return sum(value for key, value in losses.items() if key.startswith("loss_"))
