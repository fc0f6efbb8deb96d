"""Observations in units of their own spread, for policies and critics that read them directly."""

from __future__ import annotations

import math

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_pwm._utils.entries import require
from torchrl_pwm.modules.running_statistics import RunningMoments


class ObservationNormalizer(TensorDictModuleBase):
    """(o - mean) / sqrt(var + 1e-5) by running moments, as an entry of its own beside the raw observation.

    Calling it changes nothing: the moments move in :meth:`update` alone, so that they stand still while a rollout is
    made. They are buffers, saved with the module; before the first update the mean is 0 and the variance 1. Gradients
    pass through to the observation. TorchRL's ``VecNormV2`` does the same as a transform of an env, but moves its
    moments at every step. Source: SHAC (arXiv 2204.07137), published code.

    Args:
        observation_dim (int): size O of the observation, ``[*, O]``.

    Keyword Args:
        clip (float): largest absolute value written. Default: none, as published.
        in_key (NestedKey): where the observation is read. Default: ``"observation"``.
        out_key (NestedKey): where the normalised one is written. Default: ``"normalized_observation"``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> normalizer = ObservationNormalizer(2)
        >>> td = TensorDict({"observation": torch.tensor([[1.0, 10.0], [3.0, 30.0]])}, [2])
        >>> normalizer.update(td)
        >>> normalizer(td)["normalized_observation"].round(decimals=3)
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """

    def __init__(
        self,
        observation_dim: int,
        *,
        clip: float = math.inf,
        in_key: NestedKey = "observation",
        out_key: NestedKey = "normalized_observation",
    ) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [in_key], [out_key]
        self.clip = clip
        self.moments = RunningMoments((observation_dim,))

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        normalized = self.moments.normalize(self._read(tensordict), self.clip)
        return tensordict.set(self.out_keys[0], normalized)

    def update(self, tensordict: TensorDictBase) -> None:
        """Merges the observations of a TensorDict of any batch shape into the moments, all with the same weight."""
        observation = self._read(tensordict).detach()
        self.moments.update(observation.reshape(-1, observation.shape[-1]))

    def _read(self, tensordict: TensorDictBase) -> Tensor:
        observation = require(tensordict, self.in_keys[0], self, "Name what it reads with in_key=.")
        size = self.moments.mean.shape[0]
        if observation.shape[-1] != size:
            raise ValueError(
                f"ObservationNormalizer expected {self.in_keys[0]!r} of shape [*, {size}], found "
                f"{tuple(observation.shape)}: build it with observation_dim={observation.shape[-1]}."
            )
        return observation
