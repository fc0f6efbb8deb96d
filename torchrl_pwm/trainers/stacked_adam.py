"""Adam on parameters of T tasks along a first axis, each with its own state, rate and gradient norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

__all__ = ["StackedAdam"]


class StackedAdam:
    """The Adam optimisers of T tasks, on gradients that come stacked; no number is read on the host.

    Each task's step is torch's fused one on its slice, whose ``found_inf`` leaves parameters, moments and step alone
    where a flag of the task says so: one flag for all would stop the others too.

    Args:
        optimizers (sequence of torch.optim.Adam): of the T tasks, each with one group of as many parameters, which are
            views of the stacked ones.

    Raises:
        ValueError: if the optimisers differ in betas or epsilon.

    Examples:
        >>> weight = torch.ones(2, 3)
        >>> singles = [torch.optim.Adam([torch.nn.Parameter(part)], 0.1) for part in weight]
        >>> optimizer = StackedAdam(singles)
        >>> gradients, norm = optimizer.clipped([torch.ones(2, 3)], 1.0)
        >>> optimizer.step(gradients, torch.full((2,), 0.1, dtype=torch.float64), torch.tensor([True, False]))
        >>> weight[:, 0]
        tensor([0.9000, 1.0000])
    """

    def __init__(self, optimizers: Sequence[torch.optim.Adam]) -> None:
        groups = [optimizer.param_groups[0] for optimizer in optimizers]
        settings = {(tuple(group["betas"]), group["eps"]) for group in groups}
        if len(settings) != 1:
            raise ValueError(f"tasks that are trained together need one setting of Adam, found {sorted(settings)}.")
        (((self.beta1, self.beta2), self.eps),) = settings
        self.tasks = []
        for optimizer, group in zip(optimizers, groups):
            states = [optimizer.state[param] for param in group["params"]]
            for param, state in zip(group["params"], states):
                if not state:
                    state["step"] = torch.zeros((), device="cpu" if param.is_meta else param.device)
                    state["exp_avg"] = torch.zeros_like(param.data)
                    state["exp_avg_sq"] = torch.zeros_like(param.data)
            params = [param.data for param in group["params"]]
            names = ("exp_avg", "exp_avg_sq", "step")
            self.tasks.append((params, *([state[name] for state in states] for name in names)))

    @torch.no_grad()
    def clipped(self, gradients: Sequence[Tensor], limit: float) -> tuple[list[Tensor], Tensor]:
        """Gradients, in place, with a norm of at most ``limit`` for each task, and the norms [T] before."""
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        norm = torch.linalg.vector_norm(norms, dim=0)
        share = (limit / (norm + 1e-6)).clamp(max=1.0)
        # Fused steps read a gradient in the order of its parameter's memory.
        own = [gradient.contiguous() for gradient in gradients]
        return [gradient.mul_(share.view(-1, *[1] * (gradient.ndim - 1))) for gradient in own], norm

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Tensor, allowed: Tensor) -> None:
        """A step with rates [T], of the tasks that are ``allowed`` [T]."""
        refused = (~allowed).float().unbind(0)
        slices = zip(*(gradient.unbind(0) for gradient in gradients))
        for (params, averages, squares, steps), grads, rate, bad in zip(self.tasks, slices, rates.unbind(0), refused):
            fused: dict[str, Any] = {"fused": True, "found_inf": bad, "lr": rate}
            adam(
                params,
                list(grads),
                averages,
                squares,
                [],
                steps,
                # the meta device has no fused kernels, and no numbers
                **({"foreach": True, "lr": 0.0} if bad.is_meta else fused),
                amsgrad=False,
                beta1=self.beta1,
                beta2=self.beta2,
                weight_decay=0.0,
                eps=self.eps,
                maximize=False,
            )
