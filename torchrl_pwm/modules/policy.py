"""A policy on latents together with the encoder that makes them, and whether policies are to explore."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import InteractionType, TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn

from torchrl_pwm._utils.entries import require
from torchrl_pwm.modules.multitask import align_task


def is_greedy() -> bool:
    """Whether TorchRL's exploration type asks for a deterministic action; without one, policies explore."""
    greedy = (InteractionType.DETERMINISTIC, InteractionType.MODE, InteractionType.MEAN)
    return interaction_type() in greedy


class WorldModelPolicy(TensorDictModuleBase):
    """Encodes the observation with a world model, then acts: ``observation`` [*, O] to ``action`` [*, A].

    For envs without :class:`~torchrl_pwm.WorldModelWrapper`, above all in collectors with processes of their own:
    encoder and actor are parameters of one module, which the collector sends to its workers whenever they have changed.
    A policy that reads the latent needs the transform, and each worker would keep the encoder it was started with.

    Args:
        world_model (PWMWorldModel): its encoder is used, without a gradient.
        actor (TensorDictModule): what acts on ``latent``.

    Keyword Args:
        task (int, optional): the task of an env that has no entry for it, of a model with tasks.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel, make_pwm_actor
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> policy = WorldModelPolicy(model, make_pwm_actor(16, 2))
        >>> policy(TensorDict({"observation": torch.randn(4, 5)}, [4]))["action"].shape
        torch.Size([4, 2])
    """

    def __init__(self, world_model: nn.Module, actor: TensorDictModule, *, task: int | None = None) -> None:
        super().__init__()
        self.task = task
        self.world_model, self.actor = world_model, actor
        keys: Any = world_model.tensor_keys
        self.in_keys = [keys.observation, *([keys.task] if world_model.num_tasks and task is None else [])]
        # A recurrent actor reads what it wrote at the step before.
        self.in_keys += [key for key in actor.in_keys if key not in (keys.latent, *self.in_keys)]
        self.out_keys = [keys.latent, *actor.out_keys]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the latent and what the actor writes."""
        model: Any = self.world_model
        keys = model.tensor_keys
        task = tensordict.get(keys.task, None) if model.num_tasks and self.task is None else self.task
        advice = "Rename what it reads with world_model.set_keys(...), before the policy is built."
        observation = require(tensordict, keys.observation, self, advice)
        batch = observation.shape[: observation.ndim - len(model.observation_shape)]
        if isinstance(task, Tensor) and task.ndim < len(batch):
            task = align_task(task, batch)
        latent = model.encode_observation(observation, task)
        return self.actor(tensordict.set(keys.latent, latent.detach()))
