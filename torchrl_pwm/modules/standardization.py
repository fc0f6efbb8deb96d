"""Standardisation of a world model's observations and rewards by statistics of its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchrl_pwm.modules.arguments import Rebuildable
from torchrl_pwm.modules.own_encoder import no_statistics
from torchrl_pwm.modules.running_statistics import RunningMoments

_STATISTICS = ("observation_mean", "observation_std")


class Standardization(Rebuildable):
    """The part of :class:`~torchrl_pwm.PWMWorldModel` that puts observations and rewards into units of their spread.

    Without statistics, as in the published multi-task models, both stay as they are.
    """

    num_tasks: int
    observation_dim: Any
    observation_shape: tuple[int, ...]
    observation_mean: Tensor | None
    observation_std: Tensor | None
    observation_clip: float | None
    reward_moments: RunningMoments | None

    def _set_up_standardization(self, normalize_rewards: bool, observation_clip: float | None) -> None:
        if observation_clip is not None and not observation_clip > 0:
            raise ValueError(f"observation_clip must be above 0, or None, found {observation_clip}.")
        self.observation_clip = observation_clip
        self.register_buffer("observation_mean", None)
        self.register_buffer("observation_std", None)
        self.reward_moments = RunningMoments() if normalize_rewards else None

    def set_observation_statistics(self, mean: Tensor, std: Tensor, min_std: float = 1e-2) -> None:
        """Standardises observations before the encoder, task by task: (o - mean) / max(std, min_std).

        The published models have no such step and take millions of updates to resolve entries that vary by
        centimetres; small budgets need it. The statistics become part of the state dict.

        Args:
            mean, std (Tensor): ``[num_tasks, O]``, or ``[O]`` for a single-task model.
            min_std (float): floor of the standard deviation, in the observation's units.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if len(self.observation_shape) != 1:
            raise ValueError(no_statistics(self.observation_shape))
        shape = (max(self.num_tasks, 1), self.observation_dim)
        if mean.numel() != shape[0] * shape[1] or mean.shape != std.shape:
            raise ValueError(
                f"Observation statistics need shape {shape}, found {tuple(mean.shape)}, {tuple(std.shape)}."
            )
        like = next(self.parameters())
        self.observation_mean = mean.to(like).reshape(shape)
        self.observation_std = std.to(like).reshape(shape).clamp_min(min_std)

    def standardize_observation(self, observation: Tensor, task: Tensor | int | None = None) -> Tensor:
        """Observations ``[*, O]`` in units of their task's spread, if there are statistics, and clipped if so built."""
        if self.observation_mean is None or self.observation_std is None:
            return observation
        index = task if self.num_tasks and task is not None else 0
        standardized = (observation - self.observation_mean[index]) / self.observation_std[index]
        clip = self.observation_clip
        return standardized if clip is None else standardized.clamp(-clip, clip)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads parameters and buffers, as torch does.

        A whole state dict says whether there are observation statistics. Of a part of one, and with ``strict=False``,
        what it lacks stays as it is, the statistics too.
        """
        self.__dict__["_partly"] = not strict
        try:
            return super().load_state_dict(state_dict, strict, assign)
        finally:
            del self.__dict__["_partly"]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        # torch does not pass on here whether the loading is strict, nor whether it began with a module around this one
        own = {prefix + name for name in self.state_dict() if name not in _STATISTICS}
        partly = self.__dict__.get("_partly", False) or not own <= state_dict.keys()
        saved = {name: state_dict.get(prefix + name) for name in _STATISTICS}
        values = {name: getattr(self, name) if value is None and partly else value for name, value in saved.items()}
        absent = [prefix + name for name, value in values.items() if value is None]
        if len(absent) == 1:
            args[-1].append(f"Observation statistics come in pairs, but there is no {absent[0]}.")
        else:
            for name, value in values.items():
                if value is not getattr(self, name):
                    setattr(self, name, None if value is None else value.to(next(self.parameters())).clone())
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
