"""One optimisation step of each kind, as TorchRL optimisation steppers."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.trainers import OptimizationStepper

from torchrl_pwm._utils.accumulation import accumulate_gradients, total_loss
from torchrl_pwm._utils.gated_steps import GatedAdam, finite_or_nan, lerp_if
from torchrl_pwm._utils.gated_updates import GatedUpdates
from torchrl_pwm._utils.ranges import (
    CHANCE,
    COUNT,
    COUNT_OR_NONE,
    NORM,
    NOT_NEGATIVE,
    POSITIVE,
    SOME_SHARE,
    check_range,
)
from torchrl_pwm.modules.running_statistics import KeptStatistics
from torchrl_pwm.objectives import FirstOrderLoss, PWMLoss, PWMWorldModelLoss
from torchrl_pwm.objectives.rollout_ends import RolloutEnds


class UpdateStepper(OptimizationStepper):
    """A TorchRL optimisation stepper whose step in a trainer is its :meth:`update`, which needs no trainer."""

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One update from a batch; returns detached metrics."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises FloatingPointError if one of the updates since the last check was not finite."""

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        return self.update(sub_batch)


class FirstOrderOptimizationStepper(GatedUpdates, UpdateStepper):
    """One actor step and the critic pass on a differentiable rollout, with linear learning-rate schedules.

    The actor takes one clipped Adam step; the critics then regress on targets fixed before they change:
    ``critic_iterations`` passes over ``critic_batches`` consecutive, unshuffled minibatches of the rollout in
    time-major order. Its subclasses for PWM and SHAC say where rollouts come from.

    Args:
        loss_module (FirstOrderLoss): the objective; its actor and critics are optimised.

    Keyword Args:
        iterations (int): number of updates over which the learning rates fall linearly to ``final_lr``.
        actor_lr, critic_lr, final_lr (float): Adam learning rates.
        betas (tuple of float): Adam's.
        actor_clip, critic_clip (float): largest gradient norms.
        critic_iterations, critic_batches (int): passes and minibatches a pass.
        target_tau (float): with a delayed value network, how far it moves after each critic pass: target = tau value +
            (1 - tau) target. Published for SHAC (arXiv 2204.07137): 0.8, and 0.005 for the humanoid.
        **options: ``skip_non_finite``, ``check_interval`` and how it is run, see :class:`.GatedUpdates`.

    Raises:
        ValueError: if a number is out of range.
        FloatingPointError: if a loss, value target or gradient is not finite. Neither parameters nor the running
            moments have changed then, unless it is a critic minibatch alone that overflows, after the actor's step.
    """

    captured = "critic_pass"  # a rollout comes with its graph, which is new each time

    def __init__(
        self,
        loss_module: FirstOrderLoss,
        *,
        iterations: int = 10_000,
        actor_lr: float = 5e-4,
        critic_lr: float = 5e-4,
        final_lr: float = 1e-5,
        betas: tuple[float, float] = (0.7, 0.95),
        actor_clip: float = 1.0,
        critic_clip: float = 100.0,
        critic_iterations: int = 8,
        critic_batches: int = 4,
        target_tau: float = 0.8,
        **options: Any,
    ) -> None:
        check_range(COUNT_OR_NONE, iterations=iterations)  # of a schedule alone
        check_range(COUNT, critic_iterations=critic_iterations, critic_batches=critic_batches)
        check_range(POSITIVE, actor_lr=actor_lr, critic_lr=critic_lr)
        check_range(NOT_NEGATIVE, final_lr=final_lr)
        check_range(NORM, actor_clip=actor_clip, critic_clip=critic_clip)
        check_range(SOME_SHARE, target_tau=target_tau)
        self.actor_params = list(loss_module.actor_network_params.parameters())
        self.critic_params = list(loss_module.value_network_params.parameters())
        super().__init__(loss_module, **options)
        schedule: dict[str, Any] = {"final_lr": final_lr, "iterations": iterations, "betas": betas}
        self.actor_optimizer = GatedAdam(self.actor_params, actor_lr, clip=actor_clip, **schedule)
        self.critic_optimizer = GatedAdam(self.critic_params, critic_lr, clip=critic_clip, **schedule)
        self.schedulers = [self.actor_optimizer.schedule, self.critic_optimizer.schedule]
        self.actor_clip, self.critic_clip = actor_clip, critic_clip
        self.critic_iterations, self.critic_batches = critic_iterations, critic_batches
        self.target_tau = target_tau

    @property
    def number(self) -> int:
        return self.schedulers[0].last_epoch + 1

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One update from a rollout ``[B, H]`` with its graph."""
        return self.finish(batch, self.prepared(batch)(batch))

    def compute(self, batch: TensorDictBase, *draws: Any) -> TensorDictBase:
        """Actor step and critic pass from the batch; reads no number of the device."""
        statistics = KeptStatistics(self.loss_module)
        losses, rows, metrics = self.execution.call(self.forward, batch, *draws)
        self.actor_optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        norm = self.actor_optimizer.clipped_norm()
        target = rows.get(self.loss_module.tensor_keys.value_target)
        numbers = {"loss": losses["loss_actor"], "gradient norm": norm, "value target": target.sum()}
        allowed = self.gate.admits("actor", numbers)
        statistics.keep_if(allowed)
        self.actor_optimizer.step_if(allowed)
        critic = self.program(self.critic_pass)(rows, allowed)
        metrics = {"actor_grad_norm": norm, **losses, **critic, **metrics}
        rates = {"actor_lr": self.actor_optimizer.rate, "skipped": self.gate.refused.float()}
        return TensorDict({**metrics, **rates}).detach()

    def forward(
        self, batch: TensorDictBase, noise: Tensor | None = None
    ) -> tuple[dict[str, Tensor], TensorDictBase, dict[str, Tensor]]:
        """Losses of the actor; what the critics learn from, [B, H] with targets, detached; and metrics."""
        loss = self.loss_module
        rollout, further = self.imagine(batch, noise)
        losses = {"loss_actor": loss.actor_loss(rollout), **further}
        return losses, loss.critic_rows(rollout), loss.rollout_metrics(rollout)

    def imagine(self, batch: TensorDictBase, noise: Tensor | None) -> tuple[TensorDictBase, dict[str, Tensor]]:
        """The rollout [B, H] of a batch with its graph, and further losses of the actor."""
        return batch, {}

    def critic_pass(self, rows: TensorDictBase, allowed: Tensor | None = None) -> dict[str, Tensor]:
        """All steps of the critics from a rollout [B, H] with targets, where ``allowed``; reads no number."""
        loss, optimizer = self.loss_module, self.critic_optimizer
        rows = rows.transpose(0, 1).reshape(-1)
        minibatches = rows.split(max(len(rows) // self.critic_batches, 1))
        losses, norms = [], []
        for _ in range(self.critic_iterations):
            for minibatch in minibatches:
                value_loss = self.execution.call(loss.value_loss, minibatch)
                optimizer.zero_grad()
                value_loss.backward()
                norms.append(optimizer.clipped_norm())
                losses.append(value_loss.detach())
                numbers = {"loss": losses[-1], "gradient norm": norms[-1]}
                optimizer.step_if(self.gate.admits("critic", numbers, changed=True, among=allowed))
        if loss.delay_value:
            # TorchRL's SoftUpdate would move the target whatever the numbers are.
            slow, fast = loss.slow_and_fast()
            lerp_if(self.gate.is_open(allowed), slow, fast, self.target_tau)
        means = {"loss_value": torch.stack(losses).mean(), "critic_grad_norm": torch.stack(norms).mean()}
        if allowed is None:
            return means
        return {key: torch.where(allowed, value, torch.nan) for key, value in means.items()}

    def update_critics(self, rollout: TensorDictBase, target: Tensor, batch: TensorDictBase) -> dict[str, Tensor]:
        """The critic pass alone on a rollout [B, H] with its targets; ``batch``, where it began, is named in errors."""
        metrics = self.critic_pass(self.loss_module.critic_rows(rollout, target))
        self.note(batch)
        return metrics

    def _rehearse(self, *inputs: Any) -> None:
        batch, *draws = inputs
        super()._rehearse(batch.apply(_with_graph), *draws)

    def anneal(self) -> None:
        self.actor_optimizer.anneal()
        self.critic_optimizer.anneal()

    def state_dict(self) -> dict[str, Any]:
        return {
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "schedulers": [self.actor_optimizer.schedule_state(), self.critic_optimizer.schedule_state()],
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, schedule in zip(("actor", "critic"), state_dict["schedulers"]):
            optimizer: GatedAdam = getattr(self, f"{name}_optimizer")
            optimizer.load_state_dict(state_dict[f"{name}_optimizer"])
            optimizer.load_schedule(schedule)
        self.gate.refused.fill_(state_dict["skipped"])
        self.execution.forget()


class PWMOptimizationStepper(FirstOrderOptimizationStepper):
    """One update of PWM: a rollout imagined from the batch's start states, an actor step, and the critic pass.

    Source: PWM (arXiv 2407.02466), algorithm 1 and appendix; the defaults are the published ones.

    Args:
        loss_module (PWMLoss): the objective; its actor and critics are optimised.

    Keyword Args:
        continued (float): chance of each start state of a batch to give way to the latent where the rollout of its
            place in the update before ended, unless the model says that the episode ended there. The critics close a
            rollout with the value of a state where none begins: with recorded start states alone nothing holds that
            value, and an error of its slope along the way of b a step makes one of b / (1 - gamma) in every value.
            Rollouts that go on, for H / (1 - continued) steps on average, end it, as SHAC's do in its simulator.
            Default: 0, as published.
        **kwargs: see :class:`FirstOrderOptimizationStepper`.

    Raises:
        ValueError: if a number is out of range, or rollouts of a recurrent actor are to be continued.
        FloatingPointError: as there, naming the update, the entry of the batch and its tasks.

    Examples:
        >>> from torchrl_pwm import PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> loss = PWMLoss(make_pwm_actor(16, 2), make_value_ensemble(16), model, horizon=4)
        >>> stepper = PWMOptimizationStepper(loss, iterations=100, continued=0.75)
        >>> metrics = stepper.update(TensorDict({"observation": torch.randn(8, 5)}, [8]))
        >>> sorted(metrics.keys())[:3]
        ['actor_grad_norm', 'actor_lr', 'critic_grad_norm']
    """

    loss_module: PWMLoss
    captured = "compute"

    def __init__(self, loss_module: PWMLoss, *, continued: float = 0.0, **options: Any) -> None:
        check_range(CHANCE, continued=continued)
        if continued and loss_module.memory:
            raise ValueError(
                f"a recurrent actor forgets where a rollout ended: leave continued at 0, found {continued}."
            )
        super().__init__(loss_module, **options)
        self.continued = continued
        self.ends = RolloutEnds(loss_module, continued)

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        recorded = getattr(trainer, "recorded", None)
        return self.update(sub_batch, recorded=None if recorded is None else trainer.sample(recorded))

    def update(
        self, batch: TensorDictBase, noise: Tensor | None = None, recorded: TensorDictBase | None = None
    ) -> TensorDictBase:
        """One update from ``[B]`` start states, or the first steps of ``[B, T]`` sequences.

        ``noise`` [H, B, A] replaces the sampled policy noise. From ``recorded`` sequences [N, T] of the policy, N * T a
        multiple of H, the critics learn beside the imagined rollouts, see :meth:`.PWMLoss.recorded_rollout`.
        """
        inputs = self.inputs(batch), noise, recorded
        return self.finish(batch, self.prepared(*inputs)(*inputs))

    def forward(
        self, batch: TensorDictBase, noise: Tensor | None = None, recorded: TensorDictBase | None = None
    ) -> tuple[dict[str, Tensor], TensorDictBase, dict[str, Tensor]]:
        losses, rows, metrics = super().forward(batch, noise)
        if recorded is not None:
            rows = self.loss_module.with_recorded(rows, recorded)
        return losses, rows, metrics

    def inputs(self, batch: TensorDictBase) -> TensorDictBase:
        states = first_states(batch)
        if self.continued:
            self.ends.make_room(states)
        return states

    def _rehearse(self, *inputs: Any) -> None:
        GatedUpdates._rehearse(self, *inputs)

    def imagine(self, batch: TensorDictBase, noise: Tensor | None) -> tuple[TensorDictBase, dict[str, Tensor]]:
        loss = self.loss_module
        rollout = loss.imagine(self.ends.mixed_with(batch) if self.continued else batch, noise)
        if self.continued:
            self.ends.keep(rollout, self.gate.is_open())  # which it is not in rehearsals
        return rollout, {"loss_behavior": loss.behavior_loss(batch)} if loss.behavior_coef else {}

    def state_dict(self) -> dict[str, Any]:
        ends = self.ends.state_dict()
        return {**super().state_dict(), **({"ends": ends} if ends else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.ends.load_state_dict(state_dict.get("ends", {}))


class WorldModelOptimizationStepper(GatedUpdates, UpdateStepper):
    """One clipped Adam step on a world model.

    Args:
        loss_module (PWMWorldModelLoss): the objective.

    Keyword Args:
        iterations (int): number of updates over which the learning rates fall linearly to ``final_lr``.
        lr (float): learning rate of dynamics, reward head and embedding.
        final_lr (float, optional): where it ends; ``None`` (default, as published for many tasks) keeps it constant.
        encoder_lr_scale (float): the encoder's share of ``lr``; published: 0.3 for many tasks, 1 for one.
        clip (float): largest gradient norm.
        accumulate (int): equal parts of a batch, whose gradients are added one after the other to those of the update.
        **options: ``skip_non_finite``, ``check_interval`` and how it is run, see :class:`.GatedUpdates`.

    Raises:
        ValueError: if a number is out of range; at an update, if its batch cannot be divided.
        FloatingPointError: if the batch, the loss or the gradient is not finite.

    Source: TD-MPC2 (arXiv 2310.16828), appendix; PWM (arXiv 2407.02466), appendix.
    """

    def __init__(
        self,
        loss_module: PWMWorldModelLoss,
        *,
        iterations: int,
        lr: float = 3e-4,
        final_lr: float | None = None,
        encoder_lr_scale: float = 0.3,
        clip: float = 20.0,
        accumulate: int = 1,
        **options: Any,
    ) -> None:
        check_range(COUNT_OR_NONE, iterations=iterations)
        check_range(COUNT, accumulate=accumulate)
        if accumulate > 1 and loss_module.reduction != "mean":
            raise ValueError(f'accumulate={accumulate} needs reduction="mean", found {loss_module.reduction!r}.')
        check_range(POSITIVE, lr=lr)
        check_range(NOT_NEGATIVE, final_lr=final_lr or 0.0, encoder_lr_scale=encoder_lr_scale)
        check_range(NORM, clip=clip)
        self.params = list(loss_module.world_model.parameters())
        encoder = list(loss_module.world_model.encoder_network.parameters())
        inside = {id(param) for param in encoder}
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": lr * encoder_lr_scale},
            {"params": [param for param in self.params if id(param) not in inside]},
        ]
        super().__init__(loss_module, **options)
        self.optimizer = GatedAdam(groups, lr, clip=clip, final_lr=final_lr, iterations=iterations)
        self.scheduler = self.optimizer.schedule
        self.clip, self.accumulate = clip, accumulate

    @property
    def number(self) -> int:
        return self.scheduler.last_epoch + 1

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One update from ``[B, T]`` sequences."""
        return self.finish(batch, self.prepared(batch)(batch))

    def compute(self, batch: TensorDictBase) -> TensorDictBase:
        """One step from the sequences; reads no number of the device."""
        statistics = KeptStatistics(self.loss_module)
        losses, data = self.gradients(batch)
        norm = self.optimizer.clipped_norm()
        numbers = {"loss": total_loss(losses), "gradient norm": norm, "data": data}
        allowed = self.gate.admits("world-model", numbers)
        statistics.keep_if(allowed)
        self.optimizer.step_if(allowed)
        return TensorDict({**losses, "model_grad_norm": norm, "model_lr": self.optimizer.rate}).detach()

    def gradients(self, batch: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
        """The losses, whose gradients are the parameters' now; and 0 if the batch is finite, else NaN."""
        self.optimizer.zero_grad()
        losses = accumulate_gradients(batch, self.accumulate, self.losses, counted=self.loss_module.counted)
        # The two-hot code clips rewards, so that an infinite one would go unseen in the loss.
        return losses, finite_or_nan([batch.get(key) for key in self.loss_module.in_keys])

    def losses(self, batch: TensorDictBase) -> TensorDictBase:
        """Losses and metrics of sequences, with their graph, as they are run."""
        return self.execution.call(self.loss_module.losses, batch)

    def anneal(self) -> None:
        self.optimizer.anneal()

    def check(self) -> None:
        batches = self.gate.noted
        super().check()
        self.loss_module.warn_of_ends(*batches)

    def state_dict(self) -> dict[str, Any]:
        states = {"optimizer": self.optimizer.state_dict(), "scheduler": self.optimizer.schedule_state()}
        return {**states, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.optimizer.load_schedule(state_dict["scheduler"])
        self.gate.refused.fill_(state_dict.get("skipped", 0))  # which earlier checkpoints do not have
        self.execution.forget()


def first_states(batch: TensorDictBase) -> TensorDictBase:
    """The start states [B] of a batch: itself, or the first steps of sequences [B, T]."""
    return batch[:, 0] if batch.ndim == 2 else batch


def _with_graph(entry: Tensor) -> Tensor:
    """A copy of an entry that asks for gradients, as those of a rollout do."""
    return entry.detach().requires_grad_().clone() if entry.is_floating_point() else entry
