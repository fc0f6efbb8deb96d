"""What every update shares: steps that a flag on the device gates, read by the host now and then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.trainers import OptimizationStepper

from torchrl_pwm._utils.devices import readable
from torchrl_pwm._utils.ranges import COUNT, check_range
from torchrl_pwm.modules import RunningMoments
from torchrl_pwm.modules.running_statistics import PercentileScale
from torchrl_pwm.objectives.entries import describe_batch

_CHECK_INTERVAL = 16  # updates, where a read waits for the device


class UpdateStepper(OptimizationStepper):
    """A TorchRL optimisation stepper whose step in a trainer is its :meth:`update`, which needs no trainer."""

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One update from a batch; returns detached metrics."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises FloatingPointError if one of the updates since the last check was not finite."""

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        return self.update(sub_batch)


class Gate:
    """Whether an optimiser may step, decided on the device.

    The first number that is not finite closes it: no later step changes anything until the host has read of it. With
    ``skip`` it stays open, and what it refuses is counted.

    Args:
        device (torch.device): of the networks.
        skip (bool): refuse the steps concerned alone.
    """

    def __init__(self, device: torch.device, *, skip: bool = False) -> None:
        self.skip = skip
        self.closed = torch.zeros((), dtype=torch.bool, device=device)
        self.refused = torch.zeros((), dtype=torch.int64, device=device)
        self._asked: list[Question] = []
        self._failed: list[Tensor] = []
        self._numbers: list[Tensor] = []

    def admits(
        self, name: str, numbers: Mapping[str, Tensor], *, changed: bool = False, among: Tensor | None = None
    ) -> Tensor:
        """Whether the step of ``name`` may be taken: its numbers are finite, and nothing has closed the gate.

        Args:
            name: what steps, for the error.
            numbers: scalars that have to be finite.
            changed: whether other steps of the same update come before.
            among: a flag of an earlier step of this update that this one depends on.
        """
        values = torch.stack([value.detach().float() for value in numbers.values()])
        asked, finite = self.is_open(among), values.isfinite().all()
        failed = asked & ~finite
        if self.skip:
            self.refused.add_(failed)
        else:
            self.closed.logical_or_(failed)
        self._asked.append(Question(name, tuple(numbers), changed))
        self._failed.append(failed)
        self._numbers.append(values)
        return asked & finite

    def is_open(self, among: Tensor | None = None) -> Tensor:
        """Whether nothing has closed the gate yet, and ``among`` holds."""
        return ~self.closed if among is None else among & ~self.closed

    def answers(self) -> tuple[tuple[Question, ...], Tensor, Tensor]:
        """What was asked since the last call, which of it failed [n], and all numbers one after the other."""
        asked = tuple(self._asked), torch.stack(self._failed), torch.cat(self._numbers)
        self._asked, self._failed, self._numbers = [], [], []
        return asked


@dataclass(frozen=True)
class Question:
    """What had to be finite for a step."""

    name: str
    numbers: tuple[str, ...]
    changed: bool


@dataclass(frozen=True)
class Made:
    """An update whose flags the host has not read yet."""

    number: int
    evidence: Any
    asked: tuple[Question, ...]
    failed: Tensor
    numbers: Tensor


class Statistics:
    """Running statistics as they were, for updates that must leave no trace in them."""

    def __init__(self, module: nn.Module) -> None:
        kinds = (RunningMoments, PercentileScale)
        self.buffers = [buffer for part in module.modules() if isinstance(part, kinds) for buffer in part.buffers()]
        self.before = [buffer.clone() for buffer in self.buffers]

    def keep_if(self, allowed: Tensor) -> None:
        """Takes back what happened to them unless ``allowed``."""
        for buffer, before in zip(self.buffers, self.before):
            buffer.copy_(torch.where(allowed, buffer, before))


class GatedStepper(UpdateStepper):
    """An update of pure tensor functions: whether its numbers are finite is read every ``check_interval`` updates.

    Parameters, moments and statistics are untouched by an update that is not finite and by all after it, whenever
    that is read. A subclass writes :meth:`compute`, which reads no number, and asks the gate before every step.

    Args:
        params (iterable of Tensor): parameters that are optimised, all on one device.

    Keyword Args:
        skip_non_finite (bool): leave such steps out, and count them in :attr:`skipped`, instead of raising.
        check_interval (int, optional): updates between two reads. Default: 1 on a CPU, where a read costs nothing,
            else 16. :meth:`check` reads at once; trainers call it before they log, evaluate or save.

    Raises:
        ValueError: if ``check_interval`` is below 1.
        FloatingPointError: from :meth:`update` or :meth:`check`, if a number is not finite; names the update, the
            entry of its batch and its tasks.
    """

    def __init__(
        self, params: Iterable[Tensor], *, skip_non_finite: bool = False, check_interval: int | None = None
    ) -> None:
        if check_interval is not None:
            check_range(COUNT, check_interval=check_interval)
        device = next(iter(params)).device
        self.check_interval = check_interval or (1 if device.type == "cpu" else _CHECK_INTERVAL)
        self.skip_non_finite = skip_non_finite
        self.gate = Gate(device, skip=skip_non_finite)
        self._made: list[Made] = []

    @property
    def number(self) -> int:
        """Number of the next update, from 1 on."""
        raise NotImplementedError

    @property
    def skipped(self) -> int:
        """Steps that were left out; waits for the device."""
        return int(self.gate.refused)

    def anneal(self) -> None:
        """The next learning rates."""
        raise NotImplementedError

    def apply(self, batch: TensorDictBase, metrics: TensorDictBase) -> TensorDictBase:
        """Ends an update from ``batch``, whose steps have been taken: checks, next rates."""
        self.note(batch)
        self.anneal()
        return metrics

    def note(self, batch: TensorDictBase) -> None:
        """Remembers what the gate was asked since the last call, of steps from ``batch``, and checks in time."""
        self._made.append(Made(self.number, self.evidence(batch), *self.gate.answers()))
        if len(self._made) >= self.check_interval:
            self.check()

    def check(self) -> None:
        made, self._made = self._made, []
        if not made or self.skip_non_finite or not readable(made[0].failed):
            return
        for update, failed in zip(made, torch.stack([update.failed for update in made]).tolist()):
            if any(failed):
                self.gate.closed.zero_()
                self._refuse(update, failed.index(True))

    def evidence(self, batch: TensorDictBase) -> Any:
        """What an error of the update looks at later."""
        return batch

    def locate(self, evidence: Any) -> str:
        """What is not finite in what an update was made of, and what to do, for the error."""
        return describe_batch(evidence)

    def _refuse(self, update: Made, index: int) -> NoReturn:
        asked = update.asked[index]
        begin = sum(len(question.numbers) for question in update.asked[:index])
        values = update.numbers[begin : begin + len(asked.numbers)].tolist()
        raise_non_finite(
            asked.name,
            update.number,
            dict(zip(asked.numbers, values)),
            where=self.locate(update.evidence),
            changed=asked.changed,
        )


def finite_or_nan(values: Sequence[Tensor]) -> Tensor:
    """0 if every entry of all tensors is finite, else NaN."""
    finite = torch.stack([value.isfinite().all() for value in values]).all()
    return torch.where(finite, 0.0, torch.nan)


@torch.no_grad()
def lerp_if(allowed: Tensor, targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
    """target <- lerp(target, source, weight) where ``allowed``."""
    for target, moved in zip(targets, torch._foreach_lerp(list(targets), list(sources), weight)):
        target.copy_(torch.where(allowed, moved, target))


def as_metrics(metrics: Mapping[str, Tensor]) -> TensorDictBase:
    """Detached numbers as a TensorDict."""
    return TensorDict({key: value.detach() for key, value in metrics.items()})


def raise_non_finite(
    name: str, update: int, numbers: Mapping[str, float | Tensor], *, where: str, changed: bool = False
) -> NoReturn:
    """Raises FloatingPointError with the numbers of the update, and ``where`` they may come from."""
    listed = ", ".join(f"{name} {float(value):g}" for name, value in numbers.items())
    state = "Earlier steps of this update were taken" if changed else "No parameter was changed"
    raise FloatingPointError(
        f"Update {update} of the {name}: expected finite numbers, found {listed}; {where}. {state}."
    )
