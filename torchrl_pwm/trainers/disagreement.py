"""Training of the ensemble whose disagreement is penalised."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer
from tqdm import tqdm

from torchrl_pwm._utils.devices import readable, send
from torchrl_pwm._utils.finite import refuse_bad_update
from torchrl_pwm._utils.seeds import seeded
from torchrl_pwm.data import ReplayMixture
from torchrl_pwm.modules import DynamicsEnsemble, PWMWorldModel

_READ = ("observation", "action", ("next", "observation"), ("next", "reward"))


def train_disagreement(
    world_model: PWMWorldModel,
    replay: ReplayBuffer | ReplayMixture,
    *,
    iterations: int,
    lr: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> DynamicsEnsemble:
    """Trains a :class:`~torchrl_pwm.DynamicsEnsemble` on the latents of a frozen model, and returns it frozen.

    Args:
        world_model: the model; it is not changed.
        replay: gives sequences [B, T] of real transitions, all steps of which are used.
        iterations: updates with Adam; its learning rate falls from ``lr`` to zero along a cosine.
        lr: first learning rate.
        seed: seed of the heads' weights.
        progress: whether to show progress.

    Raises:
        FloatingPointError: if a batch, the loss or the gradient is not finite.
    """
    device = next(world_model.parameters()).device
    with seeded(seed):
        ensemble = DynamicsEnsemble(world_model).to(device)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(iterations, 1))
    for update in tqdm(range(iterations), desc="disagreement", unit="update", disable=not progress):
        batch = send(replay.sample(), device)
        loss = ensemble.loss(*_transitions(world_model, batch))
        optimizer.zero_grad()
        loss.backward()
        if readable(loss):
            refuse_bad_update("disagreement", update + 1, {"loss": loss}, ensemble.parameters(), batch.select(*_READ))
        optimizer.step()
        schedule.step()
    return ensemble.requires_grad_(False).eval()


@torch.no_grad()
def _transitions(model: PWMWorldModel, batch: TensorDictBase) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    task = batch["task"] if model.num_tasks else None
    latent = model.encode_observation(batch["observation"], task)
    following = model.encode_observation(batch["next", "observation"], task)
    action, reward = batch["action"].to(latent.dtype), batch["next", "reward"].to(latent.dtype)
    return latent, action, following, reward, task
