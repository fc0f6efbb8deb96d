"""One update of PWM for T tasks at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_pwm._utils.finite import non_finite
from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm.objectives.stacked_pwm import StackedPWMLoss
from torchrl_pwm.trainers.stacked_adam import StackedAdam
from torchrl_pwm.trainers.steppers import PWMOptimizationStepper

__all__ = ["StackedPWMUpdate"]

_SETTINGS = ("actor_clip", "critic_clip", "critic_iterations", "critic_batches", "skip_non_finite")
_ACTOR, _CRITIC = 1.0, 2.0  # where a number was not finite
_NUMBERS = {
    "actor": ("loss", "gradient norm", "value target"),
    "critic": ("loss", "gradient norm"),
}


class StackedPWMUpdate:
    """The update of :class:`.PWMOptimizationStepper` for T tasks on one world model, as batched matrix products.

    Each task has its own actor, critics, optimisers, return scale and schedules, which are those of the steppers it is
    made of: their weights become views of the stacked ones, so that a checkpoint of a stepper is that of a
    single training. Numbers agree with those of single updates up to rounding.

    An update reads no number on the host. A task whose numbers are not finite is left out from there on and touches
    no other; :meth:`failures` says which.

    Args:
        steppers (sequence of PWMOptimizationStepper): of the tasks, with the same settings; learning rates may differ.

    Raises:
        ValueError: if they differ in settings or continue rollouts, or their objectives do, see
            :class:`.StackedPWMLoss`.

    Examples:
        >>> from torchrl_pwm import PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> losses = [PWMLoss(make_pwm_actor(16, 2), make_value_ensemble(16), model, horizon=4) for _ in range(3)]
        >>> together = StackedPWMUpdate([PWMOptimizationStepper(loss) for loss in losses])
        >>> metrics = together.update(TensorDict({"observation": torch.randn(3, 8, 5)}, [3, 8]))
        >>> metrics["loss_actor"].shape
        torch.Size([3])
        >>> together.release()
    """

    def __init__(self, steppers: Sequence[PWMOptimizationStepper]) -> None:
        self.steppers = list(steppers)
        ways = [stepper.execution.options for stepper in steppers]
        if any(way != ways[0] for way in ways):
            raise ValueError(f"tasks that are trained together run in one way, found {ways}.")
        for name in _SETTINGS:
            values = {getattr(stepper, name) for stepper in steppers}
            if len(values) != 1:
                raise ValueError(f"tasks that are trained together need the same {name}, found {sorted(values)}.")
            setattr(self, name, values.pop())
        if continued := [stepper.continued for stepper in steppers if stepper.continued]:
            raise ValueError(
                f"tasks are trained together with continued=0, found {continued[0]}: train them one by one."
            )
        self.execution = steppers[0].execution.copy()
        self.loss_module = StackedPWMLoss([stepper.loss_module for stepper in steppers])
        self.actor_params = list(self.loss_module.actor_network.parameters())
        self.critic_params = list(self.loss_module.value_network.parameters())
        self.actor = StackedAdam([stepper.actor_optimizer for stepper in steppers])
        self.critics = StackedAdam([stepper.critic_optimizer for stepper in steppers])
        device = self.actor_params[0].device
        self._alive = torch.ones(len(steppers), dtype=torch.bool, device=device)
        # What was not finite first: where, in which update, and the numbers there.
        self._report = torch.zeros(len(steppers), 5, device=device)
        self._places = {where: torch.full((len(steppers),), where, device=device) for where in (_ACTOR, _CRITIC)}
        self._number = torch.zeros(len(steppers), device=device)
        self._skipped = torch.stack([stepper.gate.refused for stepper in steppers]).float()
        self._updates, self._batches = 0, []  # type: ignore[var-annotated]
        self._first_update = [stepper.number for stepper in steppers]
        for stepper in steppers:
            # A schedule may not go before its optimiser; without gradients this changes nothing.
            stepper.actor_optimizer.step()
            stepper.critic_optimizer.step()

    actor_clip: float
    critic_clip: float
    critic_iterations: int
    critic_batches: int
    skip_non_finite: bool

    def update(
        self,
        batch: TensorDictBase,
        noise: Tensor | None = None,
        heads: Tensor | None = None,
        recorded: TensorDictBase | None = None,
    ) -> TensorDictBase:
        """One update from start states ``[T, B]``; ``noise`` [H, T, B, A] replaces the sampled policy noise, and
        ``heads`` [T, K] the order in which the start states of each task take the heads of a model with several. From
        ``recorded`` sequences [T, N, L] the critics learn too.

        Returns:
            Detached metrics [T], by the names of a single update's.
        """
        rates = torch.stack([self._rates(stepper) for stepper in self.steppers], 1)
        self._updates += 1
        self._batches.append(batch)
        if self.skip_non_finite:
            self._batches.clear()
        inputs = batch, noise, heads, recorded, rates
        if not self.execution.ready:
            self._warm_up(*inputs)
        metrics = self.execution.program(self.compute)(*inputs)
        for stepper in self.steppers:
            stepper.anneal()
        return metrics

    @staticmethod
    def _rates(stepper: PWMOptimizationStepper) -> Tensor:
        groups = [optimizer.param_groups[0] for optimizer in (stepper.actor_optimizer, stepper.critic_optimizer)]
        return torch.stack([torch.as_tensor(group["lr"], device=group["params"][0].device) for group in groups])

    def _warm_up(self, *inputs: Any) -> None:
        """Compiles and captures :meth:`compute`, as far as it is to be; nothing else changes."""
        buffers = [self._alive, self._number, *self.loss_module.buffers()]
        before = [buffer.clone() for buffer in buffers]
        self._alive.fill_(False)
        try:
            with kept_generators():
                self.execution.warm_up(lambda: self.execution.program(self.compute)(*inputs))
        finally:
            for buffer, value in zip(buffers, before):
                buffer.copy_(value)

    def forward(
        self, batch: TensorDictBase, noise: Tensor | None, heads: Tensor | None, recorded: TensorDictBase | None
    ) -> tuple[dict[str, Tensor], TensorDictBase, dict[str, Tensor]]:
        """Losses [T] of the actors; what the critics learn from, [T, B, H] with targets, detached; and metrics."""
        loss = self.loss_module
        rollout = loss.imagine(batch, noise, heads)
        losses = {"loss_actor": loss.actor_loss(rollout)}
        if loss.behavior_coef:
            losses["loss_behavior"] = loss.behavior_loss(batch)
        rows = loss.critic_rows(rollout)
        if recorded is not None:
            rows = loss.with_recorded(rows, recorded)
        return losses, rows, loss.rollout_metrics(rollout)

    def compute(
        self,
        batch: TensorDictBase,
        noise: Tensor | None,
        heads: Tensor | None,
        recorded: TensorDictBase | None,
        rates: Tensor,
    ) -> TensorDictBase:
        """Tensors to tensors; nothing is read on the host."""
        loss = self.loss_module
        actor_rates, critic_rates = rates.unbind(0)
        self._number.add_(1)
        before = [buffer.clone() for buffer in loss.return_moments.buffers()]
        losses, rollout, further = self.execution.call(self.forward, batch, noise, heads, recorded)
        total = torch.stack(list(losses.values())).sum()
        gradients, norm = self.actor.clipped(torch.autograd.grad(total, self.actor_params), self.actor_clip)
        target = rollout.get(loss.tensor_keys.value_target)
        numbers = (losses["loss_actor"].detach(), norm, target.flatten(1).sum(1))
        allowed = self._allow(_ACTOR, self._alive, *numbers)
        self.actor.step(gradients, actor_rates, allowed)
        for buffer, old in zip(loss.return_moments.buffers(), before):
            buffer.copy_(torch.where(allowed, buffer, old))
        metrics = {"actor_grad_norm": norm, **losses, **self._update_critics(rollout, critic_rates, allowed), **further}
        metrics |= {"actor_lr": actor_rates.float(), "skipped": self._skipped.clone()}
        return TensorDict(metrics, [len(self.steppers)]).detach()

    def _update_critics(self, rollout: TensorDictBase, rates: Tensor, allowed: Tensor) -> dict[str, Tensor]:
        loss = self.loss_module
        rows = rollout.transpose(1, 2).reshape(len(self.steppers), -1)  # [T, H B], time-major
        size = max(rows.shape[1] // self.critic_batches, 1)
        losses, norms, begun = [], [], allowed
        for _ in range(self.critic_iterations):
            for minibatch in rows.split(size, 1):
                value_loss = self.execution.call(loss.value_loss, minibatch)
                gradients = torch.autograd.grad(value_loss.sum(), self.critic_params)
                clipped, norm = self.critics.clipped(gradients, self.critic_clip)
                losses.append(value_loss.detach())
                norms.append(norm)
                finite = self._allow(_CRITIC, allowed, losses[-1], norm)
                allowed = allowed if self.skip_non_finite else finite
                self.critics.step(clipped, rates, finite)
        means = {"loss_value": torch.stack(losses).mean(0), "critic_grad_norm": torch.stack(norms).mean(0)}
        return {key: torch.where(begun, value, torch.nan) for key, value in means.items()}

    def _allow(self, where: float, before: Tensor, *numbers: Tensor) -> Tensor:
        """Of the tasks [T] allowed before, those whose numbers are finite; the others are noted."""
        found = torch.stack(numbers)
        finite = found.isfinite().all(0)
        bad = before & ~finite
        self._skipped += bad
        if not self.skip_non_finite:
            entries = [*found, *[torch.zeros_like(found[0])] * (3 - len(found))]
            note = torch.stack([self._places[where], self._number, *entries], 1)
            self._report.copy_(torch.where(bad.unsqueeze(1), note, self._report))
            self._alive &= finite
        return before & finite

    def failures(self) -> dict[int, FloatingPointError]:
        """The tasks, by place, that were left out since the last call, with the errors of single updates.

        Reads the device. Parameters and moments of such a task are those before the update that was refused.
        """
        if self.skip_non_finite:
            for stepper, count in zip(self.steppers, self._skipped.tolist()):
                stepper.gate.refused.fill_(int(count))
            return {}
        errors = {}
        if not self._alive.all():
            for task, (where, update, *numbers) in enumerate(self._report.cpu()):
                if where:
                    errors[task] = self._error(task, "actor" if where == _ACTOR else "critic", int(update), numbers)
            self._report.zero_()
        self._batches.clear()
        return errors

    def _error(self, task: int, name: str, update: int, numbers: list[Tensor]) -> FloatingPointError:
        stepper, batch = self.steppers[task], self._batches[update - self._updates - 1][task]
        named = dict(zip(_NUMBERS[name], numbers))
        number = self._first_update[task] + update - 1
        return non_finite(name, number, named, changed=name == "critic", where=stepper.locate(batch))

    def release(self) -> None:
        """Gives the tasks weights of their own again; this update is of no more use."""
        for stepper in self.steppers:
            for param in (*stepper.actor_params, *stepper.critic_params):
                param.data = param.data.clone()
            moments = stepper.loss_module.return_moments
            for key, buffer in list(moments.named_buffers()):
                setattr(moments, key, buffer.clone())
