"""An ensemble of small dynamics models whose disagreement says where a world model has seen little data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrl.modules import symlog

from torchrl_pwm.modules.kernels import mish
from torchrl_pwm.modules.stacks import as_wide
from torchrl_pwm.modules.world_model import PWMWorldModel


class DynamicsEnsemble(nn.Module):
    """N one-step models of a world model's latents and rewards; how much they differ is the uncertainty of a step.

    Each head predicts the next latent and the symlog reward from latent, action and the task's embedding, and starts
    from other weights. Where data are plentiful they agree, and where a policy leaves the data they do not
    (Plan2Explore, arXiv 2005.05960; MOPO, arXiv 2005.13239). They are trained on a frozen world model's latents, see
    :meth:`loss`, and never change it.

    Args:
        world_model (PWMWorldModel): the model whose latents are read; it is not a submodule.

    Keyword Args:
        num_heads (int): ensemble size N, at least 2.
        units (sequence of int): hidden layers of each head.

    Raises:
        ValueError: for fewer than two heads.

    Examples:
        >>> import torch
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> ensemble = DynamicsEnsemble(model)
        >>> ensemble(torch.rand(8, 16), torch.zeros(8, 2)).shape
        torch.Size([8, 1])
    """

    scale: Tensor

    def __init__(self, world_model: PWMWorldModel, *, num_heads: int = 3, units: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        if num_heads < 2:
            raise ValueError(f"disagreement needs at least 2 heads, found {num_heads}.")
        # In a tuple, so that torch does not take the model for a submodule.
        self.__dict__["_world_model"] = (world_model,)
        self.num_heads = num_heads
        sizes = [world_model.latent_dim + world_model.task_dim + world_model.action_dim, *units]
        self.weights = nn.ParameterList(
            [torch.empty(num_heads, a, b) for a, b in zip(sizes, [*units, world_model.latent_dim + 1])]
        )
        self.biases = nn.ParameterList([torch.empty(num_heads, 1, b) for b in [*units, world_model.latent_dim + 1]])
        self.register_buffer("scale", torch.ones(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal weights, zero biases."""
        for weight, bias in zip(self.weights, self.biases):
            for head in weight:
                nn.init.orthogonal_(head)
            nn.init.zeros_(bias)

    def predict(self, latent: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """Predictions of the heads, [N, M, D + 1] for M steps: next latent, then symlog reward."""
        model = self.__dict__["_world_model"][0]
        hidden = model.join(latent, task, action).flatten(0, -2).expand(self.num_heads, -1, -1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            hidden = torch.baddbmm(bias, hidden, weight)
            hidden = hidden if layer == last else mish(hidden)
        return as_wide(hidden, latent)

    def forward(self, latent: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        """Disagreement [*, 1] at latent [*, D] and action [*, A]; 1 is what it is on the training data on average."""
        return self._spread(self.predict(latent, action, task)).view(*latent.shape[:-1], 1) / self.scale

    def loss(self, latent: Tensor, action: Tensor, next_latent: Tensor, reward: Tensor, task: Tensor | None) -> Tensor:
        """Squared error of all heads on transitions of batch [*]; ``reward`` [*, 1] is in raw units.

        In training mode ``scale`` follows the disagreement on these data.
        """
        target = torch.cat([next_latent, symlog(reward)], -1).flatten(0, -2)
        predicted = self.predict(latent, action, task)
        if self.training:
            self.scale.lerp_(self._spread(predicted.detach()).mean(), 0.01)
        return (predicted - target).square().mean((1, 2)).sum()

    @staticmethod
    def _spread(predicted: Tensor) -> Tensor:
        # the small term keeps the gradient of the root finite where all heads agree
        return (predicted.var(0).mean(-1) + 1e-8).sqrt()
