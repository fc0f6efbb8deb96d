"""TD-MPC2: one update, training from a replay buffer, and online training from an env's own steps."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer

from torchrl_pwm._utils.devices import send
from torchrl_pwm._utils.gated_steps import GatedAdam, finite_or_nan, lerp_if
from torchrl_pwm._utils.gated_updates import GatedUpdates
from torchrl_pwm._utils.ranges import COUNT_OR_NONE, NORM, NOT_NEGATIVE, POSITIVE, check_range
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.modules.running_statistics import KeptStatistics
from torchrl_pwm.objectives.tdmpc2 import TDMPC2Loss, TDMPC2Noise
from torchrl_pwm.trainers.online import OnlineTrainer
from torchrl_pwm.trainers.steppers import UpdateStepper
from torchrl_pwm.trainers.trainer import ReplayTrainer


class TDMPC2OptimizationStepper(GatedUpdates, UpdateStepper):
    """One clipped Adam step on everything but the policy, then one on the policy, then the target's.

    Source: TD-MPC2 (arXiv 2310.16828), appendix; the defaults are the published ones.

    Args:
        loss_module (TDMPC2Loss): the objective; its model is optimised.

    Keyword Args:
        iterations (int): number of updates over which the learning rates fall linearly to ``final_lr``.
        lr (float): learning rate.
        final_lr (float, optional): where it ends; ``None`` (default, as published) keeps it constant.
        encoder_lr_scale (float): the encoder's share of ``lr``.
        clip (float): largest gradient norm, of the model and of the policy.
        policy_eps (float): Adam's epsilon for the policy.
        tau (float): how far the target Q functions move: target = lerp(target, Q, tau).
        **options: ``skip_non_finite``, ``check_interval`` and how it is run, see :class:`.GatedUpdates`.

    Raises:
        ValueError: if a number is out of range.
        FloatingPointError: if data, a loss or a gradient are not finite, naming the update, the entry of the batch and
            its tasks. Parameters and running range have not changed then, unless it is the policy's part alone, after
            the model's step.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel, TDMPC2Loss, TDMPC2Model
        >>> model = TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11))
        >>> stepper = TDMPC2OptimizationStepper(TDMPC2Loss(model), iterations=100)
        >>> step = TensorDict({"observation": torch.randn(4, 3, 5), "reward": torch.randn(4, 3, 1)}, [4, 3])
        >>> td = TensorDict({"observation": torch.randn(4, 3, 5), "action": torch.zeros(4, 3, 2)}, [4, 3])
        >>> metrics = stepper.update(td.set("next", step))
        >>> [key for key in sorted(metrics.keys()) if key.endswith("norm")]
        ['model_grad_norm', 'policy_grad_norm']
    """

    def __init__(
        self,
        loss_module: TDMPC2Loss,
        *,
        iterations: int = 10_000,
        lr: float = 3e-4,
        final_lr: float | None = None,
        encoder_lr_scale: float = 0.3,
        clip: float = 20.0,
        policy_eps: float = 1e-5,
        tau: float = 0.01,
        **options: Any,
    ) -> None:
        if not 0.0 < tau <= 1.0:
            raise ValueError(f"tau must be above 0 and at most 1, found {tau}.")
        check_range(COUNT_OR_NONE, iterations=iterations)
        check_range(POSITIVE, lr=lr, policy_eps=policy_eps)
        check_range(NOT_NEGATIVE, final_lr=final_lr or 0.0, encoder_lr_scale=encoder_lr_scale)
        check_range(NORM, clip=clip)
        model = loss_module.model
        self.policy_params = list(model.policy.parameters())
        apart = {id(param) for param in [*self.policy_params, *model.target_q.parameters()]}
        self.model_params = [param for param in model.parameters() if id(param) not in apart]
        encoder = list(model.world_model.encoder_network.parameters())
        inside = {id(param) for param in encoder}
        groups: list[dict[str, Any]] = [
            {"params": encoder, "lr": lr * encoder_lr_scale},
            {"params": [param for param in self.model_params if id(param) not in inside]},
        ]
        super().__init__(loss_module, **options)
        schedule: dict[str, Any] = {"clip": clip, "final_lr": final_lr, "iterations": iterations}
        self.model_optimizer = GatedAdam(groups, lr, **schedule)
        self.policy_optimizer = GatedAdam(self.policy_params, lr, eps=policy_eps, **schedule)
        self.schedulers = [self.model_optimizer.schedule, self.policy_optimizer.schedule]
        self.clip, self.tau = clip, tau

    @property
    def number(self) -> int:
        return self.schedulers[0].last_epoch + 1

    def update(self, batch: TensorDictBase, noise: TDMPC2Noise | None = None) -> TensorDictBase:
        """One update from ``[B, T]`` sequences; ``noise`` replaces all random draws but dropout's."""
        return self.finish(batch, self.prepared(batch, noise)(batch, noise))

    def compute(self, batch: TensorDictBase, noise: TDMPC2Noise | None = None) -> TensorDictBase:
        """The model's step, the policy's and the target's; reads no number of the device."""
        loss, model = self.loss_module, self.loss_module.model
        losses, latents = self.execution.call(loss.model_losses, batch, noise)
        total = sum(value for key, value in losses.items() if key.startswith("loss_"))
        self.model_optimizer.zero_grad()
        total.backward()
        model_norm = self.model_optimizer.clipped_norm()
        # The two-hot code clips rewards, so that an infinite one would go unseen in the loss.
        entries = [batch.get(key, None) for key in loss.in_keys]
        data = finite_or_nan([entry for entry in entries if entry is not None])
        allowed = self.gate.admits("model", {"loss": total, "gradient norm": model_norm, "data": data})
        self.model_optimizer.step_if(allowed)

        statistics = KeptStatistics(loss)
        policy = self.execution.call(loss.policy_loss, latents, batch, noise)
        self.policy_optimizer.zero_grad()
        policy["loss_policy"].backward()
        policy_norm = self.policy_optimizer.clipped_norm()
        numbers = {"loss": policy["loss_policy"], "gradient norm": policy_norm}
        allowed = self.gate.admits("policy", numbers, changed=True, among=allowed)
        statistics.keep_if(allowed)
        self.policy_optimizer.step_if(allowed)
        lerp_if(allowed, list(model.target_q.params), list(model.q.params), self.tau)
        norms = {"model_grad_norm": model_norm, "policy_grad_norm": policy_norm}
        return TensorDict({**losses, **policy, **norms, "model_lr": self.model_optimizer.rate}).detach()

    def anneal(self) -> None:
        self.model_optimizer.anneal()
        self.policy_optimizer.anneal()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model_optimizer": self.model_optimizer.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "schedulers": [self.model_optimizer.schedule_state(), self.policy_optimizer.schedule_state()],
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, schedule in zip(("model", "policy"), state_dict["schedulers"]):
            optimizer: GatedAdam = getattr(self, f"{name}_optimizer")
            optimizer.load_state_dict(state_dict[f"{name}_optimizer"])
            optimizer.load_schedule(schedule)
        self.gate.refused.fill_(state_dict.get("skipped", 0))  # which earlier checkpoints do not have
        self.execution.forget()


class TDMPC2Trainer(ReplayTrainer):
    """Trains TD-MPC2 on sequences from a replay buffer, such as offline data of many tasks.

    Args:
        loss_module (TDMPC2Loss): the objective, which holds the model.
        replay_buffer (ReplayBuffer): gives sequences ``[B, T]``, for instance a
            :class:`~torchrl_pwm.TDMPC2ExperienceReplay`.

    Keyword Args:
        iterations (int): number of updates; published: about 10 million of 1024 sequences.
        optimization_stepper (TDMPC2OptimizationStepper, optional): default: one with the published settings.
        **kwargs: see :class:`~torchrl_pwm.trainers.ReplayTrainer`.

    Raises:
        FloatingPointError: if a number is not finite, see :class:`TDMPC2OptimizationStepper`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl_pwm import PWMWorldModel, TDMPC2Loss, TDMPC2Model
        >>> step = TensorDict({"observation": torch.randn(32, 3, 5), "reward": torch.randn(32, 3, 1)}, [32, 3])
        >>> data = TensorDict({"observation": torch.randn(32, 3, 5), "action": torch.zeros(32, 3, 2)}, [32, 3])
        >>> sequences = ReplayBuffer(storage=LazyTensorStorage(32), batch_size=4)
        >>> _ = sequences.extend(data.set("next", step))
        >>> model = TDMPC2Model(PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11))
        >>> TDMPC2Trainer(TDMPC2Loss(model), sequences, iterations=2, progress_bar=False).train()

    Source: TD-MPC2 (arXiv 2310.16828), multi-task experiments.
    """

    optimization_stepper: TDMPC2OptimizationStepper
    progress_keys = ("loss_consistency", "loss_reward", "loss_value", "loss_policy")

    def __init__(
        self,
        loss_module: TDMPC2Loss,
        replay_buffer: ReplayBuffer,
        *,
        iterations: int = 10_000,
        optimization_stepper: TDMPC2OptimizationStepper | None = None,
        **kwargs: Any,
    ) -> None:
        stepper = optimization_stepper or TDMPC2OptimizationStepper(loss_module, iterations=iterations)
        super().__init__(loss_module, replay_buffer, stepper, iterations=iterations, **kwargs)

    def train(self) -> None:
        """Runs the updates that are left.

        Each descends, on a batch of sequences [B, T], on the losses of model and Q functions, then on the policy
        prior's, and moves the target Q functions.
        """
        for _ in self.remaining():
            sequences = self.sample()
            metrics = self.optimization_stepper.step(self, sequences)
            self.log(metrics)
            self.log_evaluation()
            self.save()


class OnlineTDMPC2OptimizationStepper(UpdateStepper):
    """One iteration of online TD-MPC2: updates from replayed sequences.

    Args:
        loss_module (TDMPC2Loss): the objective.
        replay_buffer (ReplayBuffer): gives sequences ``[B, T]``, see :func:`~torchrl_pwm.data.make_online_replay`;
            published: 256 of 3 steps.

    Keyword Args:
        iterations (int): number of iterations, over which the learning rates may fall.
        updates (int): updates of an iteration; published: as many as it has steps.
        stepper (TDMPC2OptimizationStepper, optional): default: one with the published settings.

    Raises:
        ValueError: if ``updates`` is below 1.
        FloatingPointError: as the stepper.

    Source: TD-MPC2 (arXiv 2310.16828), single-task experiments.
    """

    def __init__(
        self,
        loss_module: TDMPC2Loss,
        replay_buffer: ReplayBuffer,
        *,
        iterations: int = 100_000,
        updates: int = 1,
        stepper: TDMPC2OptimizationStepper | None = None,
    ) -> None:
        if updates < 1:
            raise ValueError(f"updates must be at least 1, found {updates}.")
        self.loss_module, self.replay_buffer, self.updates = loss_module, replay_buffer, updates
        self.stepper = stepper or TDMPC2OptimizationStepper(loss_module, iterations=iterations * updates)

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One iteration; ``batch``, the newest steps, are in the replay already. Metrics are the last update's."""
        for _ in range(self.updates):
            metrics = self.update_model()
        return metrics

    def check(self) -> None:
        self.stepper.check()

    def update_model(self) -> TensorDictBase:
        """One update from the replay."""
        device = next(self.loss_module.model.parameters()).device
        return self.stepper.update(send(self.replay_buffer.sample(), device))

    def state_dict(self) -> dict[str, Any]:
        return self.stepper.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stepper.load_state_dict(state_dict)


class OnlineTDMPC2Trainer(OnlineTrainer):
    """TD-MPC2 on any TorchRL env: the planner's steps go into a replay buffer, from which everything learns.

    An iteration is one batch of the collector, then what :class:`OnlineTDMPC2OptimizationStepper` does. Before the
    first, ``warmup_steps`` are collected and ``warmup_updates`` made.

    Args:
        loss_module (TDMPC2Loss): the objective, which holds the model.
        collector (BaseCollector): a TorchRL collector of the env, with a :class:`~torchrl_pwm.TDMPC2Planner` of the
            same model and without an end; with the collector's ``init_random_frames``, its first steps are random.
        replay_buffer (ReplayBuffer): see :func:`~torchrl_pwm.data.make_online_replay`; published: 256 sequences of 3
            steps, and all steps are kept.

    Keyword Args:
        iterations (int): number of iterations; published: one a step, 1 to 4 million.
        optimization_stepper (OnlineTDMPC2OptimizationStepper, optional): default: one with the published settings and
            as many updates as a batch has steps.
        **kwargs: see :class:`~torchrl_pwm.trainers.OnlineTrainer`. Published: five random episodes as
            ``warmup_steps``, and as many ``warmup_updates``.

    Raises:
        ValueError: for a collector that does not fit, see :class:`~torchrl_pwm.trainers.OnlineTrainer`.
        FloatingPointError: if a number is not finite.

    Examples:
        >>> from torchrl.collectors import Collector
        >>> from torchrl.envs import InitTracker, TransformedEnv
        >>> from torchrl_pwm import PWMWorldModel, TDMPC2Loss, TDMPC2Model, TDMPC2Planner
        >>> from torchrl_pwm.data import make_online_replay
        >>> from torchrl_pwm.envs.simulators import AnalyticEnv
        >>> model = TDMPC2Model(PWMWorldModel(5, 1, latent_dim=16, units=(32, 32), num_bins=11))
        >>> env = TransformedEnv(AnalyticEnv("cartpole_swingup", 4), InitTracker())
        >>> planner = TDMPC2Planner(model, num_samples=32, num_policy_rollouts=4, num_elites=8, iterations=2)
        >>> trainer = OnlineTDMPC2Trainer(
        ...     TDMPC2Loss(model),
        ...     Collector(env, planner, frames_per_batch=16, init_random_frames=16),
        ...     make_online_replay(10_000, slice_len=3, batch_size=8),
        ...     iterations=2,
        ...     progress_bar=False,
        ... )
        >>> trainer.train()
        >>> trainer.env_steps
        48
    """

    optimization_stepper: OnlineTDMPC2OptimizationStepper
    progress_keys = ("env_steps", "collected_reward", "loss_value", "reward_error")

    def __init__(
        self,
        loss_module: TDMPC2Loss,
        collector: BaseCollector,
        replay_buffer: ReplayBuffer,
        *,
        iterations: int = 100_000,
        optimization_stepper: OnlineTDMPC2OptimizationStepper | None = None,
        **kwargs: Any,
    ) -> None:
        stepper = optimization_stepper or OnlineTDMPC2OptimizationStepper(
            loss_module, replay_buffer, iterations=iterations, updates=collector.requested_frames_per_batch
        )
        self.model_loss = loss_module
        super().__init__(loss_module, collector, replay_buffer, stepper, iterations=iterations, **kwargs)

    def train(self) -> None:
        """Warms up if the run is new, runs the iterations that are left, and closes the collector.

        Each iteration collects steps [N, T] of the planner into the replay buffer and updates everything from replayed
        sequences.
        """
        if self.iteration == 0:
            self.warm_up()
        for _ in self.remaining():
            steps = self.collection.collect()
            metrics = self.optimization_stepper.update(steps)
            self.log_steps(steps, metrics)
            self.log_evaluation()
            self.save()
        self.close()

    @property
    def world_model(self) -> PWMWorldModel:
        return self.loss_module.model.world_model
