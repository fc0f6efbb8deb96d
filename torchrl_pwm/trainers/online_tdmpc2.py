"""TD-MPC2 from an env's own steps."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer
from torchrl.trainers import OptimizationStepper

from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.objectives import TDMPC2Loss
from torchrl_pwm.trainers.collected import OnlineTrainer
from torchrl_pwm.trainers.tdmpc2 import TDMPC2OptimizationStepper


class OnlineTDMPC2OptimizationStepper(OptimizationStepper):
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

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        return self.update()

    def update(self) -> TensorDictBase:
        """One iteration; the metrics are those of its last update."""
        for _ in range(self.updates):
            metrics = self.update_model()
        return metrics

    def update_model(self) -> TensorDictBase:
        """One update from the replay."""
        device = next(self.loss_module.model.parameters()).device
        return self.stepper.update(self.replay_buffer.sample().to(device))

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
        ValueError: for a collector that does not fit, see :class:`~torchrl_pwm.trainers.collected.CollectedSteps`.
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

    @property
    def world_model(self) -> PWMWorldModel:
        return self.loss_module.model.world_model
