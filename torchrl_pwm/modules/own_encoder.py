"""An encoder of the user's own in a world model: pictures, or any observation that is no vector."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from torchrl_pwm.modules.layers import require_initialized


class OwnEncoder(nn.Module):
    """A network from observations ``[n, *shape]`` to features ``[n, D]``, for any batch, its output normalised.

    Args:
        network (nn.Module): of a model with tasks it is called as ``network(observation, embedding)``, [n, E].
        shape (sequence of int): of one observation.
        latent_dim (int): size D.
        normalization (nn.Module): what makes features a latent.

    Raises:
        ValueError: if the network has lazy layers that have not run; at a call, if its output has another shape.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16))
        >>> OwnEncoder(network, (3, 8, 8), 16, nn.Mish())(torch.zeros(5, 2, 3, 8, 8)).shape
        torch.Size([5, 2, 16])
    """

    def __init__(self, network: nn.Module, shape: Sequence[int], latent_dim: int, normalization: nn.Module) -> None:
        super().__init__()
        require_initialized(network, "encoder")
        self.network, self.normalization = network, normalization
        self.shape, self.latent_dim = tuple(shape), latent_dim

    def forward(self, observation: Tensor, embedding: Tensor | None = None) -> Tensor:
        """``[*, *shape]``, and with tasks [*, E], to latents ``[*, D]``."""
        batch = observation.shape[: observation.ndim - len(self.shape)]
        inputs = [observation.reshape(-1, *self.shape)]
        if embedding is not None:
            inputs.append(embedding.expand(*batch, -1).reshape(-1, embedding.shape[-1]))
        count = inputs[0].shape[0]  # len() would make a constant of it in an exported program
        features = self.network(*inputs)
        if features.shape != (count, self.latent_dim):
            raise ValueError(
                f"The encoder must give features of shape [n, latent_dim], expected "
                f"{[count, self.latent_dim]}, found {list(features.shape)}: end it with a linear layer of "
                "latent_dim outputs, or build the model with another latent_dim."
            )
        return self.normalization(features).reshape(*batch, self.latent_dim)


def observation_shape(observation_dim: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of one observation, of its size or its shape."""
    return (observation_dim,) if isinstance(observation_dim, int) else tuple(map(int, observation_dim))


def wrong_size(name: str, found: Sequence[int], shape: Sequence[int]) -> str:
    """What to say, and to do, where an input ``[*, *shape]`` of a world model has another shape."""
    size = shape[0] if len(shape) == 1 else list(shape)
    if len(shape) > 1 or not found:
        advice = "Bring it into this shape with TorchRL's transforms (ToTensorImage, Resize), or build another model."
    elif found[-1] > shape[0]:
        advice = (
            f"A model cannot take more than it was built for: build one with {name}_dim={found[-1]} and train it on "
            f"data of this env, or leave entries out."
        )
    else:
        advice = "Build the model for this size; for a task of a task set, make_task_env(..., task_set=...) pads it."
    return f"The world model was built for {name}s of size {size}, found {name} of shape {tuple(found)}. {advice}"


def no_statistics(shape: Sequence[int]) -> str:
    """What to say, and to do, where a model of observations that are no vectors is given their statistics."""
    return (
        f"Statistics are for vectors, found a model of observations of shape {tuple(shape)}, which its own encoder "
        "scales itself: give none."
    )
