"""The observation decoder of a world model: a part of its training that keeps the latent readable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchrl.modules import symexp, symlog

from torchrl_pwm.modules.arguments import Rebuildable
from torchrl_pwm.modules.layers import initialize, make_mlp


class ObservationDecoder(Rebuildable):
    """The part of :class:`~torchrl_pwm.PWMWorldModel` that reads the observation back from the latent.

    Where rewards are rare, dynamics that change nothing satisfy the consistency loss, and latents of all states become
    alike; that an observation must be read from each of them forbids it. Source: the reconstruction loss of DreamerV3
    (arXiv 2301.04104). Neither acting nor imagination needs the decoder.
    """

    num_tasks: int
    task_dim: int
    latent_dim: int
    observation_shape: tuple[int, ...]
    encoder_units: tuple[int, ...]
    observation_mean: Tensor | None
    observation_std: Tensor | None
    observation_masks: Tensor | None
    _decoder: nn.Sequential | None

    def _set_up_decoder(self, decoder: bool, observation_dims: Sequence[int] | None) -> None:
        if decoder and len(self.observation_shape) != 1:
            raise ValueError(
                "decoder=True reads vectors back, found observations of shape "
                f"{self.observation_shape}: leave it out, or put TorchRL's FlattenObservation in front."
            )
        masks = observation_masks(observation_dims, self.num_tasks, self.observation_shape)
        self.register_buffer("observation_masks", masks, persistent=False)
        self._decoder = self._make_decoder() if decoder else None

    def _make_decoder(self) -> nn.Sequential:
        """The encoder's hidden layers in reverse."""
        return make_mlp(self.latent_dim + self.task_dim, self.encoder_units[::-1], self.observation_shape[0])

    def add_decoder(self) -> None:
        """Adds an observation decoder, untrained, to a model that has none; the other weights stay as they are.

        Raises:
            ValueError: if observations are no vectors.
        """
        if self._decoder is None:
            self._set_up_decoder(True, self.constructor_arguments.get("observation_dims"))
            assert self._decoder is not None
            initialize(self._decoder)
            self.to(next(self.parameters()))
            self._change_arguments(decoder=True)

    @property
    def has_decoder(self) -> bool:
        """Whether the model has an observation decoder."""
        return self._decoder is not None

    @property
    def decoder_network(self) -> nn.Sequential | None:
        """The layers of the observation decoder, with their parameters, if there is one."""
        return self._decoder

    def decode_observation(
        self, latent: Tensor, task: Tensor | int | None = None, space: Literal["raw", "standardized"] = "raw"
    ) -> Tensor:
        """Latents ``[*, D]`` to observations ``[*, O]``, in raw units or as :meth:`observation_target` has them.

        Raises:
            ValueError: if the model has no decoder.
        """
        if self._decoder is None:
            raise ValueError("This model has no observation decoder: build it with decoder=True, or add_decoder().")
        decoded = self._decoder(self.join(latent, task))
        if space == "standardized":
            return decoded
        if self.observation_mean is None or self.observation_std is None:
            return symexp(decoded)
        index = task if self.num_tasks and task is not None else 0
        return decoded * self.observation_std[index] + self.observation_mean[index]

    def observation_target(self, observation: Tensor, task: Tensor | int | None = None) -> Tensor:
        """What the decoder learns of observations ``[*, O]``.

        With statistics (:meth:`~torchrl_pwm.PWMWorldModel.set_observation_statistics`) it is the standardised
        observation, in units of each entry's spread. Without, it is symlog(o), as in DreamerV3, which keeps large
        entries from drowning the others, but does not enlarge small ones: entries that vary by centimetres need
        statistics.
        """
        if self.observation_mean is None:
            return symlog(observation)
        return self.standardize_observation(observation, task)

    def decoding_error(self, latent: Tensor, observation: Tensor, task: Tensor | None = None) -> Tensor:
        """Squared error [*] of what is decoded from latents [*, D], mean over the entries that each task has.

        Args:
            latent (Tensor): ``[*, D]``.
            observation (Tensor): ``[*, O]``, or one that broadcasts to it.
            task (Tensor, optional): indices that broadcast to ``[*]``.
        """
        decoded = self.decode_observation(latent, task, "standardized")
        error = (decoded - self.observation_target(observation.to(decoded.dtype), task)).square()
        if self.observation_masks is None:
            return error.mean(-1)
        mask = self.observation_masks[task if self.num_tasks and task is not None else 0]
        return (error * mask).sum(-1) / mask.sum(-1)

    # Of the other parts of a world model.
    join: Any
    standardize_observation: Any


def observation_masks(sizes: Sequence[int] | None, num_tasks: int, shape: tuple[int, ...]) -> Tensor | None:
    """[num_tasks, O]: 1 where a task has an observation, 0 in its padding."""
    if sizes is None:
        return None
    if len(shape) != 1 or len(sizes) != max(num_tasks, 1) or not all(0 < size <= shape[0] for size in sizes):
        raise ValueError(
            f"observation_dims needs one size between 1 and {shape[0]} for each of {max(num_tasks, 1)} task(s), found "
            f"{list(sizes)}."
        )
    return (torch.arange(shape[0]) < torch.tensor(list(sizes))[:, None]).float()
