"""What goes before first-order optimisation: the data's behaviour for the actor, and first values for the critics."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.data import ReplayBuffer

from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.trainers.steppers import PWMOptimizationStepper, raise_non_finite


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

    A policy that starts from the data's behaviour starts where the model can be believed, and critics that know its
    values do not pull it away in the first updates. The published runs start from random networks.

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
        FloatingPointError: if a loss is not finite.
    """
    optimizer = torch.optim.Adam(stepper.actor_params, lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(behavior_updates, 1))
    for update in range(behavior_updates):
        starts = _starts(replay, device)
        distance = loss.behavior_distance(starts)
        if not distance.isfinite():
            raise_non_finite("behaviour", update + 1, starts, {"loss": distance.detach()})
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        schedule.step()
    for _ in range(value_updates):
        starts = _starts(replay, device)
        with torch.no_grad():
            rollout = loss.imagine(starts)
        stepper.update_critics(rollout, loss.value_target(rollout), starts)


def _starts(replay: ReplayBuffer, device: torch.device | str) -> TensorDictBase:
    batch = replay.sample()
    return (batch[:, 0] if batch.ndim == 2 else batch).to(device)
