"""Optimiser steps that a flag on the device can leave out: no number is read by the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from torchrl_pwm._utils.devices import readable

_REPORTED = 3  # numbers of a question, at most


class Question(NamedTuple):
    """What had to be finite for a step."""

    name: str
    numbers: tuple[str, ...]
    changed: bool


class Refusal(NamedTuple):
    """The update that was not finite: its number, what it was made of, what was asked, and the numbers found."""

    update: int
    evidence: Any
    asked: Question
    numbers: dict[str, float]


class Gate:
    """Whether an optimiser may step, decided on the device.

    The first number that is not finite closes it: no later step changes anything until the host has read of it. With
    ``skip`` it stays open, and what it refuses is counted. All that changes are buffers in place, so that updates can
    be captured in a CUDA graph.

    Args:
        device (torch.device): of the networks.
        skip (bool): refuse the steps concerned alone.
    """

    def __init__(self, device: torch.device, *, skip: bool = False) -> None:
        self.skip = skip
        self.closed = torch.zeros((), dtype=torch.bool, device=device)
        self.refused = torch.zeros((), dtype=torch.int64, device=device)
        # The question whose answer closed the gate, and its numbers.
        self._report = torch.zeros(1 + _REPORTED, device=device)
        self._questions: dict[Question, Tensor] = {}
        self._noted: list[tuple[int, Any, Tensor]] = []

    def admits(
        self, name: str, numbers: Mapping[str, Tensor], *, changed: bool = False, among: Tensor | None = None
    ) -> Tensor:
        """Whether the step of ``name`` may be taken: its numbers are finite, and nothing has closed the gate.

        Args:
            name: what steps, for the error.
            numbers: at most three scalars that have to be finite.
            changed: whether other steps of the same update come before.
            among: a flag of an earlier step of this update that this one depends on.
        """
        values = [value.detach().float() for value in numbers.values()]
        code = self._code(Question(name, tuple(numbers), changed))
        # Only numbers can fail: the code is finite.
        report = torch.stack([code, *values, *[code] * (_REPORTED - len(values))])
        asked, finite = self.is_open(among), report.isfinite().all()
        failed = asked & ~finite
        if self.skip:
            self.refused.add_(failed)
        else:
            self.closed.logical_or_(failed)
            self._report.copy_(torch.where(failed, report, self._report))
        return asked & finite

    def is_open(self, among: Tensor | None = None) -> Tensor:
        """Whether nothing has closed the gate yet, and ``among`` holds."""
        return ~self.closed if among is None else among & ~self.closed

    def note(self, update: int, evidence: Any) -> int:
        """Remembers an update until :meth:`refusal` looks at it; returns how many there are."""
        self._noted.append((update, evidence, self.closed.clone()))
        return len(self._noted)

    @property
    def noted(self) -> list[Any]:
        """What the updates were made of that nobody has looked at yet."""
        return [evidence for _, evidence, _ in self._noted]

    def refusal(self) -> Refusal | None:
        """The first update since the last call that was not finite, and opens the gate again; reads the device."""
        noted, self._noted = self._noted, []
        if not noted or self.skip or not readable(self.closed):
            return None
        closed = torch.stack([flag for *_, flag in noted]).tolist()
        if not any(closed):
            return None
        self.closed.zero_()
        code, *values = self._report.tolist()
        asked = list(self._questions)[int(code)]
        update, evidence, _ = noted[closed.index(True)]
        return Refusal(update, evidence, asked, dict(zip(asked.numbers, values)))

    def _code(self, question: Question) -> Tensor:
        if question not in self._questions:
            self._questions[question] = torch.full_like(self._report[0], len(self._questions))
        return self._questions[question]


class GatedAdam(torch.optim.Adam):
    """Adam on clipped gradients, whose step does nothing where a flag on the device says so.

    It is torch's fused Adam, whose own ``found_inf`` leaves parameters and moments alone; learning rates are tensors
    on the device, so that a step can be captured in a CUDA graph and a schedule can still move them. The ``meta``
    device, which has no fused kernels, takes the plain step.

    Args:
        params (iterable): parameters, or groups of them, on one device.
        lr (float): learning rate of groups that have none of their own.

    Keyword Args:
        clip (float): largest norm of all gradients together.
        final_lr (float, optional): where the rates end, linearly over ``iterations`` steps of :meth:`anneal`;
            ``None`` keeps them constant.
        iterations (int): length of the schedule.
        betas, eps: Adam's.

    Attributes:
        schedule (LambdaLR): of the learning rates.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = GatedAdam([weight], 0.1, clip=1.0)
        >>> weight.grad = torch.tensor([1.0, float("nan")])
        >>> optimizer.step_if(optimizer.clipped_norm().isfinite())
        >>> weight
        Parameter containing:
        tensor([1., 1.], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        clip: float,
        final_lr: float | None = None,
        iterations: int = 1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        beta1, beta2 = betas
        super().__init__(params, lr, (beta1, beta2), eps)
        self.clip = clip
        self.all_params: list[Tensor] = [param for group in self.param_groups for param in group["params"]]
        device = self.all_params[0].device
        for group in self.param_groups:
            meta = device.type == "meta"
            group |= {"fused": not meta, "foreach": meta, "capturable": device.type == "cuda"}
        self._need_device_dtype_check_for_fused = False
        self.schedule = linear_schedule(self, final_lr, iterations)
        self._rates_as_tensors()

    def clipped_norm(self) -> Tensor:
        """Clips the gradients; returns their norm before."""
        norm: Any = nn.utils.clip_grad_norm_(self.all_params, self.clip)
        # Of parameters that are shared out over processes, each process has a part of the sum.
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def step_if(self, allowed: Tensor) -> None:
        """A step where ``allowed`` (bool, on the device) is true; else parameters and moments stay as they are."""
        self.grad_scale, self.found_inf = None, None if allowed.is_meta else (~allowed).float()
        self.step()

    def anneal(self) -> None:
        """The next learning rates."""
        self.schedule.step()

    @property
    def rate(self) -> Tensor:
        """Learning rate of the last group, as it is now; stays so."""
        rate, device = self.param_groups[-1]["lr"], self.all_params[0].device
        return torch.as_tensor(rate, dtype=torch.float32, device=device).clone()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        groups = [{**group, "lr": rate} for group, rate in zip(state["param_groups"], self.scheduled_rates)]
        return {**state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads moments; whether steps are fused is a matter of this device, not of the file's."""
        own = [{key: group[key] for key in ("fused", "capturable", "foreach")} for group in self.param_groups]
        super().load_state_dict(dict(state_dict))
        for group, kind in zip(self.param_groups, own):
            group |= kind
        self._rates_as_tensors()

    def make_moments(self) -> None:
        """Makes the moments that the first step would, all zero, for a checkpoint to be read into."""
        for param in self.all_params:
            if param not in self.state:
                step = torch.zeros((), dtype=torch.float32, device=param.device)
                moments = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
                self.state[param] = {"step": step, **moments}

    def schedule_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the schedule, as plain numbers."""
        return {**self.schedule.state_dict(), "_last_lr": self.scheduled_rates}

    def load_schedule(self, state: Mapping[str, Any]) -> None:
        """Goes on where a saved schedule was, after :meth:`load_state_dict`; see :func:`load_schedule`."""
        load_schedule(self.schedule, state)
        self._rates_as_tensors()

    @property
    def scheduled_rates(self) -> list[float]:
        """Learning rates of the groups as the schedule has them, without a look at the device."""
        epoch = self.schedule.last_epoch
        bases = map(float, self.schedule.base_lrs)
        return [base * factor(epoch) for base, factor in zip(bases, self.schedule.lr_lambdas)]

    def _rates_as_tensors(self) -> None:
        """CUDA's kernels read the rate in single precision, the CPU's in double."""
        device = self.all_params[0].device
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        for group in self.param_groups:
            if device.type != "meta":
                group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=device)


def linear_schedule(optimizer: torch.optim.Optimizer, final_lr: float | None, iterations: int) -> LambdaLR:
    """The optimizer's rate ends at ``final_lr`` after ``iterations`` steps, linearly; ``None`` keeps it constant.

    Groups with a rate of their own keep their share of it.
    """
    end = 1.0 if final_lr is None else final_lr / optimizer.defaults["lr"]
    return LambdaLR(optimizer, lambda n: 1.0 + (end - 1.0) * min(n / max(iterations, 1), 1.0))


def load_schedule(schedule: LambdaLR, state: Mapping[str, Any]) -> None:
    """Goes on where a saved schedule was, after its optimiser was loaded.

    The rates are those of this schedule: of one that is longer than the saved one, as if it had been so from the start.
    """
    rates = [base * factor(state["last_epoch"]) for base, factor in zip(state["base_lrs"], schedule.lr_lambdas)]
    schedule.load_state_dict({**state, "_last_lr": rates})
    for group, rate in zip(schedule.optimizer.param_groups, rates):
        group["lr"] = rate


def finite_or_nan(values: Sequence[Tensor]) -> Tensor:
    """0 if every entry of all tensors is finite, else NaN."""
    finite = torch.stack([value.isfinite().all() for value in values]).all()
    return torch.where(finite, 0.0, torch.nan)


@torch.no_grad()
def lerp_if(allowed: Tensor, targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
    """target <- lerp(target, source, weight) where ``allowed``."""
    for target, moved in zip(targets, torch._foreach_lerp(list(targets), list(sources), weight)):
        target.copy_(torch.where(allowed, moved, target))
