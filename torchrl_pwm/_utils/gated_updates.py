"""Updates that are pure tensor functions, gated by a flag on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensordict import TensorDictBase
from torch import nn

from torchrl_pwm._utils.devices import keep_freed_memory
from torchrl_pwm._utils.execution import Execution, Precision
from torchrl_pwm._utils.finite import describe_batch, raise_non_finite
from torchrl_pwm._utils.gated_steps import Gate
from torchrl_pwm._utils.ranges import COUNT, check_range
from torchrl_pwm._utils.seeds import kept_generators

__all__ = ["GatedUpdates"]

_CHECK_INTERVAL = 16  # updates, where a read waits for the device


class GatedUpdates:
    """An update of pure tensor functions: whether its numbers are finite is read every ``check_interval`` updates.

    Parameters, moments and statistics are untouched by an update that is not finite and by all after it, whenever
    that is read. A subclass writes :meth:`compute`, which reads no number, and asks the gate before every step.

    Args:
        loss_module (LossModule): the objective, all on one device.

    Keyword Args:
        skip_non_finite (bool): leave such steps out, and count them in :attr:`skipped`, instead of raising.
        check_interval (int, optional): updates between two reads. Default: 1 on a CPU, where a read costs nothing,
            else 16. :meth:`check` reads at once; trainers call it before they log, evaluate or save.
        compile_train_step, compile_mode, cudagraph, warmup_steps, precision: how it is run, see :class:`.Execution`.

    Raises:
        ValueError: if ``check_interval`` is below 1, or an option of the execution does not fit.
        FloatingPointError: from :meth:`update` or :meth:`check`, if a number is not finite; names the update, the
            entry of its batch and its tasks.
    """

    #: The program that a CUDA graph holds, if there is one.
    captured = "compute"

    def __init__(
        self,
        loss_module: nn.Module,
        *,
        skip_non_finite: bool = False,
        check_interval: int | None = None,
        compile_train_step: bool | None = None,
        compile_mode: str = "default",
        cudagraph: bool | None = None,
        warmup_steps: int = 3,
        precision: Precision = "fp32",
    ) -> None:
        if check_interval is not None:
            check_range(COUNT, check_interval=check_interval)
        self.loss_module: Any = loss_module
        device = next(loss_module.parameters()).device
        keep_freed_memory()
        self.check_interval = check_interval or (1 if device.type == "cpu" else _CHECK_INTERVAL)
        self.skip_non_finite = skip_non_finite
        self.gate = Gate(device, skip=skip_non_finite)
        self.execution = Execution(
            device,
            compile_train_step=compile_train_step,
            compile_mode=compile_mode,
            cudagraph=cudagraph,
            warmup_steps=warmup_steps,
            precision=precision,
        )

    @property
    def number(self) -> int:
        """Number of the next update, from 1 on."""
        raise NotImplementedError

    @property
    def skipped(self) -> int:
        """Steps that were left out; waits for the device."""
        return int(self.gate.refused)

    def inputs(self, batch: TensorDictBase) -> TensorDictBase:
        """What :meth:`compute` reads of a batch."""
        return batch

    def compute(self, batch: TensorDictBase, *draws: Any) -> TensorDictBase:
        """The optimiser steps of an update and its metrics, from tensors to tensors."""
        raise NotImplementedError

    def prepared(self, *inputs: Any) -> Callable[..., TensorDictBase]:
        """:meth:`compute` as it is run; rehearses it on these inputs before the first update, if it must be."""
        if not self.execution.ready:
            self._warm_up(*inputs)
        return self.program(self.compute)

    def program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A part of an update as it is run: captured, if it is what is to be."""
        return self.execution.program(function) if function.__name__ == self.captured else function

    def finish(self, batch: TensorDictBase, metrics: TensorDictBase) -> TensorDictBase:
        """Ends an update from ``batch``, whose steps have been taken: checks, next rates."""
        self.note(batch)
        self.anneal()
        return metrics

    def anneal(self) -> None:
        """The next learning rates."""
        raise NotImplementedError

    def warmup(self, sample: TensorDictBase) -> None:
        """Compiles and captures the update, as far as it is to be, by rehearsals on a sample of its batches.

        Weights, optimisers, statistics and random generators stay as they are. The first update does it by itself.
        """
        self._warm_up(self.inputs(sample))

    def _warm_up(self, *inputs: Any) -> None:
        buffers = [self.gate.closed, *self.loss_module.buffers()]
        before = [buffer.clone() for buffer in buffers]
        self.gate.closed.fill_(True)
        try:
            with kept_generators():
                self.execution.warm_up(lambda: self._rehearse(*inputs))
        finally:
            for buffer, value in zip(buffers, before):
                buffer.copy_(value)

    def _rehearse(self, *inputs: Any) -> None:
        self.program(self.compute)(*inputs)

    def note(self, batch: TensorDictBase) -> None:
        """Remembers what steps were made of until the next check, which may be now."""
        if self.gate.note(self.number, self.evidence(batch)) >= self.check_interval:
            self.check()

    def check(self) -> None:
        """Raises FloatingPointError if one of the updates since the last check was not finite."""
        refusal = self.gate.refusal()
        if refusal is not None:
            update, evidence, asked, numbers = refusal
            raise_non_finite(asked.name, update, numbers, where=self.locate(evidence), changed=asked.changed)

    def evidence(self, batch: TensorDictBase) -> Any:
        """What an error of the update looks at later."""
        return batch

    def locate(self, evidence: Any) -> str:
        """What is not finite in what an update was made of, and what to do, for the error."""
        return describe_batch(evidence)
