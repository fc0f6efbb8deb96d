"""Training of a world model from a replay buffer."""

from __future__ import annotations

from typing import Any

from torchrl.data import ReplayBuffer

from torchrl_pwm.objectives import PWMWorldModelLoss
from torchrl_pwm.trainers.steppers import WorldModelOptimizationStepper
from torchrl_pwm.trainers.trainer import ReplayTrainer


class WorldModelTrainer(ReplayTrainer):
    """Trains a world model on sequences from a replay buffer.

    Args:
        loss_module (PWMWorldModelLoss): the objective.
        replay_buffer (ReplayBuffer): gives sequences ``[B, T]``.

    Keyword Args:
        iterations (int): number of updates.
        optimization_stepper (WorldModelOptimizationStepper, optional): default: one with the published settings.
        **kwargs: see :class:`~torchrl_pwm.trainers.ReplayTrainer`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl_pwm import PWMWorldModel
        >>> step = TensorDict({"observation": torch.randn(32, 8, 5), "reward": torch.randn(32, 8, 1)}, [32, 8])
        >>> data = TensorDict({"observation": torch.randn(32, 8, 5), "action": torch.zeros(32, 8, 2)}, [32, 8])
        >>> sequences = ReplayBuffer(storage=LazyTensorStorage(32), batch_size=4)
        >>> _ = sequences.extend(data.set("next", step))
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> WorldModelTrainer(PWMWorldModelLoss(model), sequences, iterations=2, progress_bar=False).train()
    """

    optimization_stepper: WorldModelOptimizationStepper
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

    def train(self) -> None:
        """Runs the updates that are left, each along a batch of sequences [B, T]."""
        for _ in self.remaining():
            sequences = self.sample()
            self.log(self.optimization_stepper.step(self, sequences))
            self.log_evaluation()
            self.save()
