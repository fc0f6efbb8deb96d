"""The processes that train one model together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from torchrl_pwm._utils.torchrun import attempt, launched, local_rank

__all__ = ["OnWhole", "Ranks", "joined_ranks", "whole_state"]


class Ranks:
    """The processes of a ``torch.distributed`` group that train one model together.

    Attributes:
        rank (int): number of this process, from 0 on.
        count (int): how many there are.
        device (torch.device): where this one computes.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.device = torch.device(device)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def mean(self, numbers: Tensor) -> Tensor:
        """Means [n] over the processes of what each has; one that is not finite is so for all."""
        total = numbers.clone()
        dist.all_reduce(total)
        return total / self.count

    def any(self, flags: Tensor) -> Tensor:
        """What is above 0 in one of the processes, of numbers [n] of each."""
        largest = flags.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest > 0

    def agreed(self, flag: bool) -> bool:
        """The flag of the first process, for which all wait."""
        said = torch.tensor([int(flag)], device=self.device)
        dist.broadcast(said, 0)
        return bool(said.item())

    def wait(self) -> None:
        """Until all processes are here."""
        dist.barrier()


@contextlib.contextmanager
def joined_ranks(device: torch.device | str) -> Iterator[Ranks]:
    """The group of the processes that a launcher started, for the block; of a process alone a group of one.

    On CUDA each process takes the GPU of its number on its machine, and NCCL; on a CPU gloo.

    Examples:
        >>> with joined_ranks("cpu") as ranks:
        ...     ranks.rank, ranks.count
        (0, 1)
    """
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(local_rank())
    backend = "nccl" if cuda else "gloo"
    store: dist.Store = dist.HashStore()
    rank, count = 0, 1
    if launched():
        store, rank, count = next(rendezvous("env://"))
        # Processes that are started again may find the addresses of those before them in the launcher's store.
        store = dist.PrefixStore(f"attempt-{attempt()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count)
    yield Ranks(device)
    # After an error the others may never come to the end of it.
    dist.destroy_process_group()


def whole_state(model: nn.Module) -> dict[str, Any]:
    """A model's state dict with the whole of what is shared out, on every process; all of them have to call it."""
    state = model.state_dict()
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}


class OnWhole:
    """An evaluation by the first process of a copy of the model that is whole, to be given as ``evaluate``.

    Args:
        model (nn.Module): the one that is trained, whose parameters may be shared out.
        whole (nn.Module): the copy, made before they were.
        ranks (Ranks): the processes, each of which has to call it.
        evaluate (callable, optional): the evaluation of the copy.
    """

    def __init__(
        self,
        model: nn.Module,
        whole: nn.Module,
        ranks: Ranks,
        evaluate: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self.model, self.whole, self.ranks, self.evaluate = model, whole, ranks, evaluate

    def refresh(self) -> None:
        """Brings the copy up to the model; every process has to call it."""
        self.whole.load_state_dict(whole_state(self.model))

    def __call__(self) -> Mapping[str, Any]:
        self.refresh()
        return {} if self.evaluate is None or not self.ranks.first else self.evaluate()
