"""PWM: policy extraction from a frozen world model, and online training of both from an env's own steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer

from torchrl_pwm._utils.devices import send
from torchrl_pwm._utils.finite import refuse_bad_update
from torchrl_pwm._utils.ranges import COUNT, COUNT_OR_NONE, SHARE, check_range
from torchrl_pwm.data.sampling import ReplaySampling
from torchrl_pwm.objectives import PWMLoss, PWMWorldModelLoss
from torchrl_pwm.trainers.online import OnlineTrainer
from torchrl_pwm.trainers.steppers import (
    PWMOptimizationStepper,
    UpdateStepper,
    WorldModelOptimizationStepper,
    first_states,
)
from torchrl_pwm.trainers.trainer import Metrics, ReplayTrainer

if TYPE_CHECKING:
    from torchrl_pwm.trainers.averaging import PolicyAverage


class PWMTrainer(ReplayTrainer):
    """Extracts a policy from a frozen world model, with start states from a replay buffer.

    Args:
        loss_module (PWMLoss): the objective.
        replay_buffer (ReplayBuffer): gives start states ``[B]``, or sequences ``[B, T]`` whose first steps are used.

    Keyword Args:
        iterations (int): number of updates; published: 10,000.
        optimization_stepper (PWMOptimizationStepper, optional): default: one with the published settings.
        average (PolicyAverage, optional): moving average of the policy's weights, updated with them.
        recorded (ReplayBuffer, optional): gives sequences ``[N, T]`` of the policy, or of one near it, from which the
            critics learn beside the imagined rollouts, see :meth:`.PWMLoss.recorded_rollout`.
        **kwargs: see :class:`~torchrl_pwm.trainers.ReplayTrainer`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl_pwm import PWMWorldModel, make_pwm_actor, make_value_ensemble
        >>> starts = ReplayBuffer(storage=LazyTensorStorage(32), batch_size=8)
        >>> _ = starts.extend(TensorDict({"observation": torch.randn(32, 5)}, [32]))
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> loss = PWMLoss(make_pwm_actor(16, 2), make_value_ensemble(16), model, horizon=4)
        >>> PWMTrainer(loss, starts, iterations=2, progress_bar=False).train()
    """

    optimization_stepper: PWMOptimizationStepper
    progress_keys = ("loss_actor", "loss_value")

    def __init__(
        self,
        loss_module: PWMLoss,
        replay_buffer: ReplayBuffer,
        *,
        iterations: int = 10_000,
        optimization_stepper: PWMOptimizationStepper | None = None,
        average: PolicyAverage | None = None,
        recorded: ReplayBuffer | None = None,
        **kwargs: Any,
    ) -> None:
        stepper = optimization_stepper or PWMOptimizationStepper(loss_module, iterations=iterations)
        super().__init__(loss_module, replay_buffer, stepper, iterations=iterations, **kwargs)
        self.recorded = recorded
        if recorded is not None:
            self.components["recorded_sampling"] = ReplaySampling(recorded, saves=self.save_folder is not None)
        self.average = average
        if average is not None:
            self.components["policy_average"] = average

    def train(self) -> None:
        """Runs the updates that are left, each from a batch of start states [B]."""
        for _ in self.remaining():
            metrics = self.optimization_stepper.step(self, self.sample())
            if self.average is not None:
                self.average.update()
            self.after_update(metrics)

    def after_update(self, metrics: Metrics | TensorDictBase) -> None:
        """What follows an update: the log, an evaluation and a checkpoint, where they are due."""
        self.log(metrics)
        self.log_evaluation()
        self.save()


class OnlinePWMOptimizationStepper(UpdateStepper):
    """One iteration of online PWM: the world model learns from replayed sequences, then the policy inside it.

    The imagined rollouts start from ``start_states`` states, of which the share ``recent_share`` was visited since the
    last iteration and the rest is drawn from the replay.

    Args:
        loss_module (PWMLoss): the policy's objective.
        model_loss (PWMWorldModelLoss): the objective of its world model.
        replay_buffer (ReplayBuffer): gives sequences ``[B, T]``, see :func:`~torchrl_pwm.data.make_online_replay`.

    Keyword Args:
        iterations (int): number of iterations, over which the learning rates fall; published: 15,000.
        model_updates (int): world-model updates of an iteration; published: 8.
        policy_updates (int): policy updates of an iteration; published: 1.
        start_states (int): start states B of a policy update; published: one for each env, 64 or 128.
        recent_share (float): share of them from the newest steps, between 0 and 1.
        critic_sequences (int): envs whose newest steps [T] the critics learn from beside the imagined rollouts, see
            :meth:`.PWMLoss.recorded_rollout`. Default: 0, as published.
        model_stepper (WorldModelOptimizationStepper, optional): default: one with a constant rate of 3e-4, the same for
            the encoder, as published for one task.
        policy_stepper (PWMOptimizationStepper, optional): default: one with the published settings.
        seed (int): seed of the draws of start states.

    Raises:
        ValueError: if a number is out of range, or the two losses have different world models.
        FloatingPointError: as the two steppers.

    Source: PWM (arXiv 2407.02466), single-task experiments. There the imagined chain runs beside the real envs with
    the same actions, so that all start states are the envs' current ones (``recent_share=1``).
    """

    def __init__(
        self,
        loss_module: PWMLoss,
        model_loss: PWMWorldModelLoss,
        replay_buffer: ReplayBuffer,
        *,
        iterations: int = 15_000,
        model_updates: int = 8,
        policy_updates: int = 1,
        start_states: int = 256,
        recent_share: float = 0.5,
        critic_sequences: int = 0,
        model_stepper: WorldModelOptimizationStepper | None = None,
        policy_stepper: PWMOptimizationStepper | None = None,
        seed: int = 0,
    ) -> None:
        check_range(COUNT, policy_updates=policy_updates, start_states=start_states)
        check_range(COUNT_OR_NONE, model_updates=model_updates, critic_sequences=critic_sequences)
        check_range(SHARE, recent_share=recent_share)
        if loss_module.world_model is not model_loss.world_model:
            raise ValueError("PWMLoss and PWMWorldModelLoss must share one world model: build both with the same one.")
        self.loss_module, self.model_loss, self.replay_buffer = loss_module, model_loss, replay_buffer
        self.model_stepper = model_stepper or WorldModelOptimizationStepper(
            model_loss, iterations=iterations * max(model_updates, 1), encoder_lr_scale=1.0
        )
        self.policy_stepper = policy_stepper or PWMOptimizationStepper(
            loss_module, iterations=iterations * policy_updates
        )
        self.model_updates, self.policy_updates = model_updates, policy_updates
        self.start_states, self.recent_share, self.critic_sequences = start_states, recent_share, critic_sequences
        self._generator = torch.Generator().manual_seed(seed)

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One iteration; ``batch`` [N, T] are the newest steps, already in the replay buffer."""
        metrics = TensorDict()
        for _ in range(self.model_updates):
            metrics.update(self.update_model())
        for _ in range(self.policy_updates):
            metrics.update(self.update_policy(batch))
        return metrics

    def update_model(self) -> TensorDictBase:
        """One world-model update from the replay."""
        return self.model_stepper.update(self._to_device(self.replay_buffer.sample()))

    def update_policy(self, recent: TensorDictBase) -> TensorDictBase:
        """One policy update, imagined from newest and replayed states."""
        return self.policy_stepper.update(self.draw_starts(recent), recorded=self.draw_sequences(recent))

    def draw_starts(self, recent: TensorDictBase) -> TensorDictBase:
        """Start states ``[start_states]`` of the newest steps and of the replay."""
        keys = self.loss_module.in_keys
        count = round(self.recent_share * self.start_states)
        parts = []
        if count:
            steps = recent.select(*keys).reshape(-1)
            parts.append(self._to_device(steps[torch.randint(len(steps), (count,), generator=self._generator)]))
        while sum(map(len, parts)) < self.start_states:
            parts.append(self._to_device(self.replay_buffer.sample()).select(*keys)[:, 0])
        return torch.cat(parts)[: self.start_states]

    def draw_sequences(self, recent: TensorDictBase) -> TensorDictBase | None:
        """Sequences ``[critic_sequences, T]`` of the newest steps [N, T], if the critics are to learn from some."""
        if not self.critic_sequences:
            return None
        if recent.ndim < 2:
            raise ValueError(
                f"critic_sequences={self.critic_sequences} needs the newest steps as sequences [N, T], found a batch "
                f"{list(recent.shape)}: do not flatten them, or leave it at 0."
            )
        return self._to_device(recent[torch.randperm(len(recent), generator=self._generator)[: self.critic_sequences]])

    def check(self) -> None:
        self.model_stepper.check()
        self.policy_stepper.check()

    def _to_device(self, batch: TensorDictBase) -> TensorDictBase:
        return send(batch, next(self.model_loss.world_model.parameters()).device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model_stepper.state_dict(),
            "policy": self.policy_stepper.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.model_stepper.load_state_dict(state_dict["model"])
        self.policy_stepper.load_state_dict(state_dict["policy"])
        self._generator.set_state(state_dict["generator"])


class OnlinePWMTrainer(OnlineTrainer):
    """PWM on any TorchRL env: steps go into a replay buffer, the model learns from it, the policy inside the model.

    An iteration is one batch of the collector, then what :class:`OnlinePWMOptimizationStepper` does. Before the first,
    ``warmup_steps`` are collected and ``warmup_updates`` made of the world model; :meth:`pretrain` learns from a data
    set first.

    Args:
        loss_module (PWMLoss): the policy's objective.
        model_loss (PWMWorldModelLoss): the objective of its world model.
        collector (BaseCollector): a TorchRL collector of the env, with a :class:`~torchrl_pwm.WorldModelPolicy` of the
            same networks and without an end; with the collector's ``init_random_frames``, its first steps are random.
        replay_buffer (ReplayBuffer): see :func:`~torchrl_pwm.data.make_online_replay`.

    Keyword Args:
        iterations (int): number of iterations; published: 15,000 of 16 steps in every env.
        optimization_stepper (OnlinePWMOptimizationStepper, optional): default: one with the published settings.
        **kwargs: see :class:`~torchrl_pwm.trainers.OnlineTrainer`.

    Raises:
        ValueError: for a collector that does not fit, see :class:`~torchrl_pwm.trainers.OnlineTrainer`.
        FloatingPointError: if a number is not finite.

    Examples:
        >>> from torchrl.collectors import Collector
        >>> from torchrl_pwm import PWMLoss, PWMWorldModel, PWMWorldModelLoss, WorldModelPolicy
        >>> from torchrl_pwm import make_pwm_actor, make_value_ensemble
        >>> from torchrl_pwm.data import make_online_replay
        >>> from torchrl_pwm.envs.simulators import AnalyticEnv
        >>> model = PWMWorldModel(5, 1, latent_dim=16, units=(32, 32), normalize_rewards=True)
        >>> actor, value = make_pwm_actor(16, 1), make_value_ensemble(16)
        >>> env, policy = AnalyticEnv("cartpole_swingup", 4), WorldModelPolicy(model, actor)
        >>> collector = Collector(env, policy, frames_per_batch=64)
        >>> trainer = OnlinePWMTrainer(
        ...     PWMLoss(actor, value, model, horizon=4),
        ...     PWMWorldModelLoss.single_task(model),
        ...     collector,
        ...     make_online_replay(10_000, slice_len=4, batch_size=8),
        ...     iterations=2,
        ...     progress_bar=False,
        ... )
        >>> trainer.train()
        >>> trainer.env_steps
        192
    """

    optimization_stepper: OnlinePWMOptimizationStepper
    progress_keys = ("env_steps", "collected_reward", "loss_actor", "reward_error")

    def __init__(
        self,
        loss_module: PWMLoss,
        model_loss: PWMWorldModelLoss,
        collector: BaseCollector,
        replay_buffer: ReplayBuffer,
        *,
        iterations: int = 15_000,
        optimization_stepper: OnlinePWMOptimizationStepper | None = None,
        **kwargs: Any,
    ) -> None:
        stepper = optimization_stepper or OnlinePWMOptimizationStepper(
            loss_module, model_loss, replay_buffer, iterations=iterations
        )
        self.model_loss = model_loss
        super().__init__(loss_module, collector, replay_buffer, stepper, iterations=iterations, **kwargs)
        # PWMLoss leaves the world model to others.
        self.components["world_model"] = model_loss.world_model

    def train(self) -> None:
        """Warms up if the run is new, runs the iterations that are left, and closes the collector.

        Each iteration collects steps [N, T] of the envs into the replay buffer, updates the world model from replayed
        sequences, and the policy and critics inside it, from newest and replayed states.
        """
        if self.iteration == 0:
            self.warm_up()
        for _ in self.remaining():
            steps = self.collection.collect()
            self.log_steps(steps, self.optimization_stepper.update(steps))
            self.log_evaluation()
            self.save()
        self.close()

    def pretrain(self, replay_buffer: ReplayBuffer, updates: int, **options: Any) -> None:
        """World-model updates from a data set, before any step of the env.

        With a ``save_folder`` among the options, the same call goes on where it was interrupted, to the same numbers.

        Args:
            replay_buffer (ReplayBuffer): gives sequences ``[B, T]``, for instance a
                :class:`~torchrl_pwm.TDMPC2ExperienceReplay` or any TorchRL data set with slices.
            updates (int): published: 50,000 for hopper, 100,000 for ant, 200,000 for humanoid.

        Keyword Args:
            **options: of the :class:`~torchrl_pwm.trainers.WorldModelTrainer` that makes them, such as ``logger`` and
                ``save_folder``.
        """
        self.set_statistics(replay_buffer)
        if not updates:
            return
        from torchrl_pwm.trainers.world_model import WorldModelTrainer  # which few runs need

        trainer = WorldModelTrainer(
            self.model_loss,
            replay_buffer,
            iterations=updates,
            optimization_stepper=self.optimization_stepper.model_stepper,
            device=next(self.world_model.parameters()).device,
            **{"progress_bar": self.progress_bar, **options},
        )
        if trainer.save_folder is not None:
            trainer.resume(required=False)
        if trainer.iteration < updates:
            trainer.train()


def warm_start(
    loss: PWMLoss,
    stepper: PWMOptimizationStepper,
    replay: ReplayBuffer,
    *,
    behavior_updates: int = 0,
    value_updates: int = 0,
    lr: float = 1e-3,
    device: torch.device | str = "cpu",
) -> None:
    """Clones the behaviour at the start states, then fits the critics to imagined rollouts of that policy.

    There the model can be believed, and critics that know the policy's values do not pull it away in the first
    updates. The published runs start from random networks.

    Args:
        loss: the objective.
        stepper: its optimisation; the critics' optimiser is used.
        replay: gives start states [B] with ``action``, or sequences [B, T].
        behavior_updates: updates of the actor towards the data's action, with Adam of their own and a learning rate
            that falls from ``lr`` to zero along a cosine.
        value_updates: critic passes, each on a new rollout.
        lr: first learning rate of the actor's updates.
        device: where batches go.

    Raises:
        ValueError: if a number of updates is negative.
        FloatingPointError: if a batch, a loss or a gradient is not finite.
    """
    check_range(COUNT_OR_NONE, behavior_updates=behavior_updates, value_updates=value_updates)
    optimizer = torch.optim.Adam(stepper.actor_params, lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(behavior_updates, 1))
    for update in range(behavior_updates):
        starts = send(first_states(replay.sample()), device)
        distance = loss.behavior_distance(starts)
        optimizer.zero_grad()
        distance.backward()
        read = starts.select(*loss.in_keys, loss.tensor_keys.action, strict=False)
        refuse_bad_update("behaviour", update + 1, {"loss": distance}, stepper.actor_params, read)
        optimizer.step()
        schedule.step()
    for _ in range(value_updates):
        with torch.no_grad():
            rollout = loss.imagine(starts := send(first_states(replay.sample()), device))
        stepper.update_critics(rollout, loss.value_target(rollout), starts)
    stepper.check()
