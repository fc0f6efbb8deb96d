"""Adam on parameters of T tasks along a first axis, each with its own steps, rate and gradient norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["StackedAdam"]


class StackedAdam:
    """T Adam optimisers as one, without reading a number on the host.

    A task that a flag [T] leaves out keeps parameters, moments and step. State and parameters of the single optimisers
    become views of the stacked ones, so that their state dicts are at every time what those of T single trainings are.

    Args:
        params (sequence of Tensor): stacked parameters [T, ...].
        optimizers (sequence of torch.optim.Adam): of the T tasks, each with one group of as many parameters.

    Raises:
        ValueError: if the optimisers differ in betas or epsilon.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(2, 3))
        >>> singles = [torch.optim.Adam([torch.nn.Parameter(part)], 0.1) for part in weight.data]
        >>> adam = StackedAdam([weight], singles)
        >>> gradients, norm = adam.clipped([torch.ones(2, 3)], 1.0)
        >>> adam.step(gradients, torch.full((2,), 0.1), torch.tensor([True, False]))
        >>> weight.data[:, 0]
        tensor([0.9000, 1.0000])
    """

    def __init__(self, params: Sequence[Tensor], optimizers: Sequence[torch.optim.Adam]) -> None:
        groups = [optimizer.param_groups[0] for optimizer in optimizers]
        settings = {(tuple(group["betas"]), group["eps"]) for group in groups}
        if len(settings) != 1:
            raise ValueError(f"tasks that are trained together need one setting of Adam, found {sorted(settings)}.")
        (((self.beta1, self.beta2), self.eps),) = settings
        self.params = list(params)
        # A row of steps for each parameter, as torch keeps them.
        self.steps = torch.zeros(len(self.params), len(groups), device=self.params[0].device)
        self.averages = [torch.zeros_like(param.data) for param in self.params]
        self.squares = [torch.zeros_like(param.data) for param in self.params]
        for task, (optimizer, group) in enumerate(zip(optimizers, groups)):
            for index, single in enumerate(group["params"]):
                self._take_over(optimizer.state[single], index, task)

    def _take_over(self, state: dict[str, Any], index: int, task: int) -> None:
        places = {
            "step": self.steps[index, task],
            "exp_avg": self.averages[index][task],
            "exp_avg_sq": self.squares[index][task],
        }
        for name, place in places.items():
            if name in state:
                place.copy_(state[name])
            state[name] = place

    @torch.no_grad()
    def clipped(self, gradients: Sequence[Tensor], limit: float) -> tuple[list[Tensor], Tensor]:
        """Gradients with a norm of at most ``limit`` for each task, and the norms [T] before."""
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        norm = torch.linalg.vector_norm(norms, dim=0)
        share = (limit / (norm + 1e-6)).clamp(max=1.0)
        return [gradient * _along(share, gradient) for gradient in gradients], norm

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Tensor, allowed: Tensor) -> None:
        """A step with rates [T], of the tasks that are ``allowed`` [T]."""
        self.steps += allowed
        step = self.steps[0].double()
        # Of a task without a step yet the corrections are zero; its share below is zero too.
        first = (1 - self.beta1**step).clamp_min(1 - self.beta1)
        second = (1 - self.beta2**step).clamp_min(1 - self.beta2)
        gate = allowed.to(self.params[0].dtype)
        rate = (rates / first).to(gate) * gate
        root, weight1, weight2 = second.sqrt().to(gate), (1 - self.beta1) * gate, (1 - self.beta2) * gate
        for param, gradient, average, square in zip(self.params, gradients, self.averages, self.squares):
            finite = torch.where(_along(allowed, gradient), gradient, 0.0)
            average.lerp_(finite, _along(weight1, average))
            square.mul_(_along(1 - weight2, square)).add_(finite.square_().mul_(_along(weight2, square)))
            change = average / square.sqrt().div_(_along(root, square)).add_(self.eps)
            param.sub_(change.mul_(_along(rate, change)))


def _along(values: Tensor, like: Tensor) -> Tensor:
    """[T] as [T, 1, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))
