"""World-model pre-training as a TorchRL trainer."""

from __future__ import annotations

from typing import Any

from torchrl.data import ReplayBuffer

from torchrl_pwm.objectives import PWMWorldModelLoss
from torchrl_pwm.trainers.base import ReplayTrainer
from torchrl_pwm.trainers.steppers import WorldModelOptimizationStepper


class WorldModelTrainer(ReplayTrainer):
    """Trains a world model on sequences from a replay buffer.

    Args:
        loss_module (PWMWorldModelLoss): the objective.
        replay_buffer (ReplayBuffer): gives sequences ``[B, T]``.

    Keyword Args:
        iterations (int): number of updates.
        optimization_stepper (WorldModelOptimizationStepper, optional): default: one with the published settings.
        **kwargs: see :class:`~torchrl_pwm.trainers.ReplayTrainer`.
    """

    progress_keys = ("loss_consistency", "loss_reward", "reward_error")

    def __init__(
        self,
        loss_module: PWMWorldModelLoss,
        replay_buffer: ReplayBuffer,
        *,
        iterations: int,
        optimization_stepper: WorldModelOptimizationStepper | None = None,
        **kwargs: Any,
    ) -> None:
        stepper = optimization_stepper or WorldModelOptimizationStepper(loss_module, iterations=iterations)
        super().__init__(loss_module, replay_buffer, stepper, iterations=iterations, **kwargs)
