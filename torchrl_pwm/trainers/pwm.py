"""Policy extraction as a TorchRL trainer."""

from __future__ import annotations

from typing import Any

from torchrl.data import ReplayBuffer

from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.trainers.base import ReplayTrainer
from torchrl_pwm.trainers.steppers import PWMOptimizationStepper


class PWMTrainer(ReplayTrainer):
    """Extracts a policy from a frozen world model, with start states from a replay buffer.

    Args:
        loss_module (PWMLoss): the objective.
        replay_buffer (ReplayBuffer): gives start states ``[B]``, or sequences ``[B, T]`` whose first steps are used.

    Keyword Args:
        iterations (int): number of updates; published: 10,000.
        optimization_stepper (PWMOptimizationStepper, optional): default: one with the published settings.
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

    progress_keys = ("loss_actor", "loss_value")

    def __init__(
        self,
        loss_module: PWMLoss,
        replay_buffer: ReplayBuffer,
        *,
        iterations: int = 10_000,
        optimization_stepper: PWMOptimizationStepper | None = None,
        **kwargs: Any,
    ) -> None:
        stepper = optimization_stepper or PWMOptimizationStepper(loss_module, iterations=iterations)
        super().__init__(loss_module, replay_buffer, stepper, iterations=iterations, **kwargs)
