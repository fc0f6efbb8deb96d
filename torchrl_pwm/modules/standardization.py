"""Standardisation of a world model's observations and rewards by statistics of its data."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from torchrl_pwm.modules.running_statistics import RunningMoments


class Standardization(nn.Module):
    """The part of :class:`~torchrl_pwm.PWMWorldModel` that puts observations and rewards into units of their spread.

    Without statistics, as in the published multi-task models, both stay as they are.
    """

    num_tasks: int
    observation_dim: Any
    observation_shape: tuple[int, ...]
    observation_mean: Tensor | None
    observation_std: Tensor | None
    reward_moments: RunningMoments | None

    def _set_up_standardization(self, normalize_rewards: bool) -> None:
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
            raise ValueError("An encoder of your own standardises its observations itself: give no statistics.")
        shape = (max(self.num_tasks, 1), self.observation_dim)
        if mean.numel() != shape[0] * shape[1] or mean.shape != std.shape:
            raise ValueError(
                f"Observation statistics need shape {shape}, found {tuple(mean.shape)}, {tuple(std.shape)}."
            )
        like = next(self.parameters())
        self.observation_mean = mean.to(like).reshape(shape)
        self.observation_std = std.to(like).reshape(shape).clamp_min(min_std)

    def standardize_observation(self, observation: Tensor, task: Tensor | int | None = None) -> Tensor:
        """Observations ``[*, O]`` in units of their task's spread, if there are statistics."""
        if self.observation_mean is None or self.observation_std is None:
            return observation
        index = task if self.num_tasks and task is not None else 0
        return (observation - self.observation_mean[index]) / self.observation_std[index]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Statistics are there or not; take over what was saved.
        for name in ("observation_mean", "observation_std"):
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else saved.to(next(self.parameters())).clone())
        super()._load_from_state_dict(state_dict, prefix, *args)
