"""Open-loop predictions of a world model beside real transitions, by the number of imagined steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.objectives.sequences import same_episode, unroll

__all__ = ["PROBED_STEPS", "ObservationReader", "counting_steps", "open_loop", "open_loop_errors", "open_loop_rewards"]

PROBED_STEPS = (1, 4, 8, 16)
_RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # in units of the latents' variance
_LOSS = 0.01  # of the variance: given up for a larger ridge, which imagined latents beside the real ones excite less
_BLOCK = 16  # neighbours in time are nearly alike: they go into one half together


class ObservationReader:
    """Observations in units of their standard deviation, read from the latents of a world model.

    That is the model's own decoder where it has one, else a linear map by ridge regression on half of the states, with
    the largest penalty that does about as well as any on the other half.

    Args:
        world_model: the model, of observations that are vectors.
        states: real ones, [N] or [B, T], with ``observation`` and, for a multi-task model, ``task``; neighbours in time
            stand beside each other.

    Attributes:
        explained: share of the variance of the observations that it reads, on states that it was not fitted on.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> reader = ObservationReader(model, TensorDict({"observation": torch.randn(64, 5)}, [64]))
        >>> reader(torch.rand(3, 16)).shape
        torch.Size([3, 5])
    """

    @torch.no_grad()
    def __init__(self, world_model: PWMWorldModel, states: TensorDictBase) -> None:
        observation = states["observation"].flatten(0, states.ndim - 1)
        task = states["task"].flatten() if world_model.num_tasks else None
        latent = world_model.encode_observation(observation, task)
        mean, std = observation.mean(0), observation.std(0, correction=0)
        self.varies = std > 1e-6 * observation.abs().amax(0).clamp_min(1e-6)
        self._mean, self._std = mean[self.varies], std[self.varies]
        self._model: Any = world_model if getattr(world_model, "has_decoder", False) else None
        target = (observation[:, self.varies] - self._mean) / self._std
        fitted = torch.arange(len(latent), device=latent.device) // min(_BLOCK, max(len(latent) // 2, 1)) % 2 == 0
        if self._model is None:
            self._fit(latent[fitted], target[fitted], latent[~fitted], target[~fitted])
        rest = ~fitted if self._model is None else torch.ones_like(fitted)
        read = self(latent[rest], None if task is None else task[rest])
        self.explained = _explained(read - target[rest], target[rest])

    def _fit(self, latent: Tensor, target: Tensor, others: Tensor, other_targets: Tensor) -> None:
        center = latent.double().mean(0)
        z, x = latent.double() - center, target.double()
        values, vectors = torch.linalg.eigh(z.T @ z / len(z))
        projected = vectors.T @ (z.T @ (x - x.mean(0)) / len(z))
        spread, fits = (other_targets - other_targets.mean(0)).double().square().sum(), []
        for ridge in _RIDGES:
            weight = vectors @ (projected / (values + ridge * values.mean().clamp_min(1e-30))[:, None])
            bias = x.mean(0) - center @ weight
            fits.append(
                (float((others.double() @ weight + bias - other_targets).square().sum() / spread), weight, bias)
            )
        enough = min(error for error, *_ in fits) + _LOSS
        _, weight, bias = next(fit for fit in fits if not fit[0] > enough)
        self._weight, self._bias = weight.to(latent), bias.to(latent)

    def __call__(self, latent: Tensor, task: Tensor | None = None) -> Tensor:
        """Latents [*, D] to the entries [*, O'] that vary."""
        if self._model is None:
            return latent @ self._weight + self._bias
        return (self._model.decode_observation(latent, task)[..., self.varies] - self._mean) / self._std


@torch.no_grad()
def open_loop(world_model: PWMWorldModel, sequences: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Rewards [B, T] in raw units and latents [B, T, D] of the following states, for real actions.

    See :func:`open_loop_rewards`.
    """
    task = sequences["task"][:, 0] if world_model.num_tasks else None
    latents, logits = unroll(world_model, sequences["observation"][:, 0], sequences["action"], task)
    rewards = world_model.decode_reward(logits).squeeze(-1)
    if world_model.termination:
        going_on = torch.sigmoid(-world_model.termination_logits(latents[1:-1], task)).squeeze(-1)
        rewards = rewards * torch.cat([torch.ones_like(rewards[:1]), going_on.cumprod(0)])
    return rewards.T, latents[1:].transpose(0, 1)


def open_loop_rewards(world_model: PWMWorldModel, sequences: TensorDictBase) -> Tensor:
    """Rewards [B, T] that the model predicts for real actions from the first observations on, in raw units.

    With a termination head each counts with the probability that the episode has not ended before it.

    Args:
        world_model: the model.
        sequences: [B, T] with ``observation``, ``action`` and, for a multi-task model, ``task``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> batch = TensorDict({"observation": torch.randn(4, 9, 5), "action": torch.zeros(4, 9, 2)}, [4, 9])
        >>> open_loop_rewards(model, batch).shape
        torch.Size([4, 9])
    """
    return open_loop(world_model, sequences)[0]


@torch.no_grad()
def open_loop_errors(
    world_model: PWMWorldModel,
    sequences: TensorDictBase,
    steps: Sequence[int] = PROBED_STEPS,
    reader: ObservationReader | None = None,
) -> dict[str, dict[int, float]]:
    """Errors of what the model predicts for real actions from the first observations on, by imagined step.

    Args:
        world_model: the model.
        sequences: [B, T] of real transitions. Steps that TorchRL's samplers mark as added, by
            ``("collector", "mask")``, do not count, nor do those after a ``("next", "done")``.
        steps: numbers of imagined steps, from 1; those beyond T are left out.
        reader: reads observations from the latents, for ``observation_error``.

    Returns:
        By step, ``error`` (mean of predicted minus real reward), ``absolute_error``, ``relative_error``, the same in
        units of the mean size of the real rewards, and ``explained``, the share of their variance that the predictions
        explain, at most 1; it is NaN where the real rewards do not vary. ``state_explained`` is the same share of the
        latents that the real observations have. With a ``reader`` also ``observation_error``: the root mean square of
        what is read from the imagined state minus what is read from the real one, in standard deviations of the
        observations' entries.

    Examples:
        >>> from tensordict import TensorDict
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> data = TensorDict({"observation": torch.randn(4, 9, 5), "action": torch.zeros(4, 9, 2)}, [4, 9])
        >>> data["next"] = TensorDict({"observation": torch.randn(4, 9, 5), "reward": torch.ones(4, 9, 1)}, [4, 9])
        >>> sorted(open_loop_errors(model, data)["error"])
        [1, 4, 8]
    """
    real = sequences["next", "reward"].squeeze(-1)
    predicted, latents = open_loop(world_model, sequences)
    difference = (predicted - real).double()
    counts = counting_steps(sequences)
    task = sequences["task"] if world_model.num_tasks else None
    encoded = world_model.encode_observation(sequences["next", "observation"], task)
    read = None if reader is None else (reader(latents, task) - reader(encoded, task)).double()
    names = ("error", "absolute_error", "relative_error", "explained", "state_explained")
    result: dict[str, dict[int, float]] = {name: {} for name in names}
    if read is not None:
        result["observation_error"] = {}
    for step in steps:
        if step > real.shape[1] or not counts[:, step - 1].any():
            continue
        here = counts[:, step - 1]
        errors, rewards = difference[here, step - 1], real[here, step - 1].double()
        ahead, real_states = latents[here, step - 1].double(), encoded[here, step - 1].double()
        result["error"][step] = float(errors.mean())
        result["absolute_error"][step] = size = float(errors.abs().mean())
        result["relative_error"][step] = size / max(float(rewards.abs().mean()), 1e-12)
        result["explained"][step] = _explained(errors[:, None], rewards[:, None])
        result["state_explained"][step] = _explained(ahead - real_states, real_states)
        if read is not None:
            result["observation_error"][step] = float(read[here, step - 1].square().mean().sqrt())
    return result


def _explained(errors: Tensor, real: Tensor) -> float:
    """Share of the variance of ``real`` [N, D] that predictions with these errors explain; NaN where there is none."""
    spread, size = float((real - real.mean(0)).square().sum()), float(real.square().sum())
    return 1.0 - float(errors.square().sum()) / spread if spread > 1e-12 * max(size, 1e-12) else nan


def counting_steps(sequences: TensorDictBase) -> Tensor:
    """[B, T]: which steps count, those of one episode that were not added."""
    counts = torch.ones(sequences.shape, dtype=torch.bool, device=sequences.device)
    if (ended := same_episode(sequences, "done")) is not None:
        counts = counts & ended
    added = sequences.get(("collector", "mask"), None)
    return counts if added is None else counts & added.reshape(counts.shape)
