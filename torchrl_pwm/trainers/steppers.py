"""One optimisation step of each kind, as TorchRL optimisation steppers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.trainers import OptimizationStepper

from torchrl_pwm._utils.ranges import COUNT, COUNT_OR_NONE, NORM, NOT_NEGATIVE, POSITIVE, check_range
from torchrl_pwm.modules import RunningMoments
from torchrl_pwm.objectives import FirstOrderLoss, PWMLoss, PWMWorldModelLoss
from torchrl_pwm.objectives.entries import all_finite, describe_batch


class UpdateStepper(OptimizationStepper):
    """A TorchRL optimisation stepper whose step in a trainer is its :meth:`update`, which needs no trainer."""

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One update from a batch; returns detached metrics."""
        raise NotImplementedError

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        return self.update(sub_batch)


class FirstOrderOptimizationStepper(UpdateStepper):
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
        skip_non_finite (bool): leave an optimiser step out, and count it, when its loss or gradient is not finite. By
            default it raises instead.

    Raises:
        ValueError: if a number is out of range.
        FloatingPointError: if a loss, value target or gradient is not finite. Neither parameters nor the running
            moments have changed then, unless it is a critic minibatch alone that overflows, after the actor's step.
    """

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
        skip_non_finite: bool = False,
    ) -> None:
        check_range(COUNT_OR_NONE, iterations=iterations)  # of a schedule alone
        check_range(COUNT, critic_iterations=critic_iterations, critic_batches=critic_batches)
        check_range(POSITIVE, actor_lr=actor_lr, critic_lr=critic_lr)
        check_range(NOT_NEGATIVE, final_lr=final_lr)
        check_range(NORM, actor_clip=actor_clip, critic_clip=critic_clip)
        self.loss_module = loss_module
        self.actor_params = list(loss_module.actor_network_params.parameters())
        self.critic_params = list(loss_module.value_network_params.parameters())
        beta1, beta2 = betas
        self.actor_optimizer = torch.optim.Adam(self.actor_params, actor_lr, betas=(beta1, beta2), fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic_params, critic_lr, betas=(beta1, beta2), fused=True)
        self.schedulers = [
            linear_schedule(self.actor_optimizer, final_lr, iterations),
            linear_schedule(self.critic_optimizer, final_lr, iterations),
        ]
        self.actor_clip, self.critic_clip = actor_clip, critic_clip
        self.critic_iterations, self.critic_batches = critic_iterations, critic_batches
        self.skip_non_finite = skip_non_finite
        self.skipped = 0

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One update from a rollout ``[B, H]`` with its graph."""
        return self.optimize(batch, batch)

    def optimize(
        self, rollout: TensorDictBase, batch: TensorDictBase, further: Mapping[str, Tensor] | None = None
    ) -> TensorDictBase:
        """Actor step and critic pass on a rollout [B, H].

        ``batch``, where it came from, is named in errors; ``further`` losses are added to the actor's.
        """
        loss, further = self.loss_module, further or {}
        moments = [module for module in loss.modules() if isinstance(module, RunningMoments)]
        before = [{name: buffer.clone() for name, buffer in module.state_dict().items()} for module in moments]
        actor_loss = loss.actor_loss(rollout)
        self.actor_optimizer.zero_grad()
        sum(further.values(), actor_loss).backward()
        actor_norm = nn.utils.clip_grad_norm_(self.actor_params, self.actor_clip)
        target = loss.value_target(rollout)
        numbers = {"loss": actor_loss.detach(), "gradient norm": actor_norm, "value target": target.sum()}
        if all_finite(numbers.values()):
            self.actor_optimizer.step()
            critic = self.update_critics(rollout, target, batch)
        else:
            # One such batch would make the running moments, and all later losses, non-finite.
            for module, state in zip(moments, before):
                module.load_state_dict(state)
            self._refuse("actor", batch, numbers, changed=False)
            nothing = torch.full_like(actor_loss.detach(), torch.nan)
            critic = {"loss_value": nothing, "critic_grad_norm": nothing}
        metrics: dict[str, Any] = {"loss_actor": actor_loss.detach(), "actor_grad_norm": actor_norm, **critic}
        metrics |= {name: value.detach() for name, value in further.items()}
        metrics |= loss.rollout_metrics(rollout)
        metrics["actor_lr"] = self.schedulers[0].get_last_lr()[0]
        metrics["skipped"] = float(self.skipped)
        for scheduler in self.schedulers:
            scheduler.step()
        return TensorDict(metrics)

    def update_critics(self, rollout: TensorDictBase, target: Tensor, batch: TensorDictBase) -> dict[str, Tensor]:
        """The critic pass on a rollout [B, H] with its targets; ``batch``, where it began, is named in errors."""
        loss = self.loss_module
        keys = [*loss.value_network.in_keys, loss.tensor_keys.value_target]
        rollout = rollout.detach().set(loss.tensor_keys.value_target, target)
        rows = rollout.select(*keys).transpose(0, 1).reshape(-1)
        minibatches = rows.split(max(len(rows) // self.critic_batches, 1))
        losses, norms = [], []
        for _ in range(self.critic_iterations):
            for minibatch in minibatches:
                value_loss = loss.value_loss(minibatch)
                self.critic_optimizer.zero_grad()
                value_loss.backward()
                norms.append(nn.utils.clip_grad_norm_(self.critic_params, self.critic_clip))
                losses.append(value_loss.detach())
                numbers = {"loss": losses[-1], "gradient norm": norms[-1]}
                if all_finite(numbers.values()):
                    self.critic_optimizer.step()
                else:
                    self._refuse("critic", batch, numbers, changed=True)
        return {"loss_value": torch.stack(losses).mean(), "critic_grad_norm": torch.stack(norms).mean()}

    def _refuse(self, name: str, batch: TensorDictBase, numbers: dict[str, Tensor], *, changed: bool) -> None:
        if not self.skip_non_finite:
            update = self.schedulers[0].last_epoch + 1
            raise_non_finite(name, update, batch, numbers, changed=changed, where=self.locate(batch))
        self.skipped += 1

    def locate(self, batch: TensorDictBase) -> str:
        """What is not finite in a batch that was refused, and what to do, for the error."""
        return describe_batch(batch)

    def state_dict(self) -> dict[str, Any]:
        return {
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.actor_optimizer.load_state_dict(state_dict["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state_dict["critic_optimizer"])
        for scheduler, state in zip(self.schedulers, state_dict["schedulers"]):
            load_schedule(scheduler, state)
        self.skipped = state_dict["skipped"]


class PWMOptimizationStepper(FirstOrderOptimizationStepper):
    """One update of PWM: a rollout imagined from the batch's start states, an actor step, and the critic pass.

    Source: PWM (arXiv 2407.02466), algorithm 1 and appendix; the defaults are the published ones.

    Args:
        loss_module (PWMLoss): the objective; its actor and critics are optimised.

    Keyword Args:
        **kwargs: see :class:`FirstOrderOptimizationStepper`.

    Raises:
        FloatingPointError: as there, naming the update, the entry of the batch and its tasks.

    Examples:
        >>> from torchrl_pwm import PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> loss = PWMLoss(make_pwm_actor(16, 2), make_value_ensemble(16), model, horizon=4)
        >>> stepper = PWMOptimizationStepper(loss, iterations=100)
        >>> metrics = stepper.update(TensorDict({"observation": torch.randn(8, 5)}, [8]))
        >>> sorted(metrics.keys())[:3]
        ['actor_grad_norm', 'actor_lr', 'critic_grad_norm']
    """

    loss_module: PWMLoss

    def update(self, batch: TensorDictBase, noise: Tensor | None = None) -> TensorDictBase:
        """One update from ``[B]`` start states, or the first steps of ``[B, T]`` sequences.

        ``noise`` [H, B, A] replaces the sampled policy noise.
        """
        loss = self.loss_module
        start = first_states(batch)
        rollout = loss.imagine(start, noise)
        behavior = {"loss_behavior": loss.behavior_loss(start)} if loss.behavior_coef else {}
        return self.optimize(rollout, batch, behavior)


class WorldModelOptimizationStepper(UpdateStepper):
    """One clipped Adam step on a world model.

    Args:
        loss_module (PWMWorldModelLoss): the objective.

    Keyword Args:
        iterations (int): number of updates over which the learning rates fall linearly to ``final_lr``.
        lr (float): learning rate of dynamics, reward head and embedding.
        final_lr (float, optional): where it ends; ``None`` (default, as published for many tasks) keeps it constant.
        encoder_lr_scale (float): the encoder's share of ``lr``; published: 0.3 for many tasks, 1 for one.
        clip (float): largest gradient norm.

    Raises:
        ValueError: if a number is out of range.
        FloatingPointError: if the loss or the gradient is not finite.

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
    ) -> None:
        check_range(COUNT_OR_NONE, iterations=iterations)
        check_range(POSITIVE, lr=lr)
        check_range(NOT_NEGATIVE, final_lr=final_lr or 0.0, encoder_lr_scale=encoder_lr_scale)
        check_range(NORM, clip=clip)
        self.loss_module = loss_module
        self.params = list(loss_module.world_model.parameters())
        encoder = list(loss_module.world_model.encoder_network.parameters())
        inside = {id(param) for param in encoder}
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": lr * encoder_lr_scale},
            {"params": [param for param in self.params if id(param) not in inside]},
        ]
        self.optimizer = torch.optim.Adam(groups, lr, fused=True)
        self.scheduler = linear_schedule(self.optimizer, final_lr, iterations)
        self.clip = clip

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One update from ``[B, T]`` sequences."""
        update = self.scheduler.last_epoch + 1
        # The two-hot code clips rewards, so that an infinite one would go unseen in the loss.
        if not all_finite(batch.get(key) for key in self.loss_module.in_keys):
            raise_non_finite("world-model", update, batch, {})
        losses = self.loss_module(batch)
        total = losses["loss_consistency"] + losses["loss_reward"]
        if "loss_termination" in losses.keys():  # noqa: SIM118, a TensorDict has no `in` of its own
            total = total + losses["loss_termination"]
        self.optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.params, self.clip)
        numbers = {"loss": total.detach(), "gradient norm": norm}
        if not all_finite(numbers.values()):
            raise_non_finite("world-model", update, batch, numbers)
        self.optimizer.step()
        lr = self.scheduler.get_last_lr()[-1]
        self.scheduler.step()
        return losses.detach().set("model_grad_norm", norm).set("model_lr", torch.tensor(lr))

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict["optimizer"])
        load_schedule(self.scheduler, state_dict["scheduler"])


def first_states(batch: TensorDictBase) -> TensorDictBase:
    """The start states [B] of a batch: itself, or the first steps of sequences [B, T]."""
    return batch[:, 0] if batch.ndim == 2 else batch


def linear_schedule(
    optimizer: torch.optim.Optimizer, final_lr: float | None, iterations: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """lr_n = lr_0 + (final_lr - lr_0) n / iterations for every parameter group; constant for ``None``."""

    def factor(initial_lr: float) -> Any:
        end = 1.0 if final_lr is None else final_lr / initial_lr
        return lambda n: 1.0 + (end - 1.0) * min(n / max(iterations, 1), 1.0)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [factor(group["lr"]) for group in optimizer.param_groups])


def load_schedule(scheduler: torch.optim.lr_scheduler.LambdaLR, state: Mapping[str, Any]) -> None:
    """Goes on where a saved schedule was, after its optimiser was loaded.

    The rates are those of this schedule: of one that is longer than the saved one, as if it had been so from the start.
    """
    rates = [base * factor(state["last_epoch"]) for base, factor in zip(state["base_lrs"], scheduler.lr_lambdas)]
    scheduler.load_state_dict({**state, "_last_lr": rates})
    for group, rate in zip(scheduler.optimizer.param_groups, rates):
        group["lr"] = rate


def raise_non_finite(
    name: str,
    update: int,
    batch: TensorDictBase,
    numbers: Mapping[str, Tensor],
    *,
    changed: bool = False,
    where: str | None = None,
) -> NoReturn:
    """Raises FloatingPointError with the numbers of the update, and ``where`` they may come from."""
    where = where or describe_batch(batch)
    listed = ", ".join(f"{name} {float(value):g}" for name, value in numbers.items()) or "others"
    state = "Earlier steps of this update were taken" if changed else "No parameter was changed"
    raise FloatingPointError(
        f"Update {update} of the {name}: expected finite numbers, found {listed}; {where}. {state}."
    )
