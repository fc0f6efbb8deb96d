"""How far a policy of recorded data can be trusted: its model and its critics on episodes that were held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from torchrl_pwm.evaluation.trust import PROBED_STEPS, open_loop_rewards
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.objectives.sequences import same_episode, unroll

__all__ = ["distance_from_data", "open_loop_ends", "open_loop_errors", "value_gaps"]


@torch.no_grad()
def open_loop_errors(
    world_model: PWMWorldModel, sequences: TensorDictBase, steps: Sequence[int] = PROBED_STEPS
) -> dict[str, dict[int, float]]:
    """Errors of what the model predicts for real actions from the first observations on, by imagined step.

    Args:
        world_model: the model.
        sequences: [B, T] of real transitions. Steps that TorchRL's samplers mark as added, by
            ``("collector", "mask")``, do not count, nor do those after a ``("next", "done")``.
        steps: numbers of imagined steps, from 1; those beyond T are left out.

    Returns:
        By step, ``error`` (mean of predicted minus real), ``absolute_error``, ``relative_error``, the same in units of
        the mean size of the real rewards, and ``explained``, the share of their variance that the predictions explain,
        at most 1; it is NaN where the real rewards do not vary. ``state_explained`` is the same share of the latents
        that the real observations have.

    Examples:
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> data = TensorDict({"observation": torch.randn(4, 9, 5), "action": torch.zeros(4, 9, 2)}, [4, 9])
        >>> data["next"] = TensorDict({"observation": torch.randn(4, 9, 5), "reward": torch.ones(4, 9, 1)}, [4, 9])
        >>> sorted(open_loop_errors(model, data)["error"])
        [1, 4, 8]
    """
    real = sequences["next", "reward"].squeeze(-1)
    difference = (open_loop_rewards(world_model, sequences) - real).double()
    counts = _counting(sequences)
    latents, encoded = _latents(world_model, sequences)
    names = ("error", "absolute_error", "relative_error", "explained", "state_explained")
    result: dict[str, dict[int, float]] = {name: {} for name in names}
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
    return result


def _explained(errors: Tensor, real: Tensor) -> float:
    """Share of the variance of ``real`` [N, D] that predictions with these errors explain; NaN where there is none."""
    spread, size = float((real - real.mean(0)).square().sum()), float(real.square().sum())
    return 1.0 - float(errors.square().sum()) / spread if spread > 1e-12 * max(size, 1e-12) else nan


def _latents(world_model: PWMWorldModel, sequences: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Latents [B, T, D] of the following states: imagined from the first observation on, and of the real ones."""
    task = sequences["task"] if world_model.num_tasks else None
    first = None if task is None else task[:, 0]
    latents, _ = unroll(world_model, sequences["observation"][:, 0], sequences["action"], first)
    return latents[1:].transpose(0, 1), world_model.encode_observation(sequences["next", "observation"], task)


def _counting(sequences: TensorDictBase) -> Tensor:
    """[B, T]: which steps count, those of one episode that were not added."""
    counts = torch.ones(sequences.shape, dtype=torch.bool, device=sequences.device)
    if (ended := same_episode(sequences, "done")) is not None:
        counts = counts & ended
    added = sequences.get(("collector", "mask"), None)
    return counts if added is None else counts & added.reshape(counts.shape)


@torch.no_grad()
def open_loop_ends(world_model: PWMWorldModel, sequences: TensorDictBase) -> dict[str, float]:
    """The probability of a termination that the model gives to steps of real sequences, imagined from the first on.

    Args:
        world_model: a model with a termination head.
        sequences: [B, T], with ``("next", "terminated")``; see :func:`open_loop_errors`.

    Returns:
        Means over the steps that really ended an episode, ``where_ended``, and over those that did not, ``elsewhere``;
        NaN where there are none.
    """
    task = sequences["task"] if world_model.num_tasks else None
    ends = torch.sigmoid(world_model.termination_logits(_latents(world_model, sequences)[0], task)).squeeze(-1)
    real, counts = sequences["next", "terminated"].squeeze(-1), _counting(sequences)
    return {"where_ended": float(ends[counts & real].mean()), "elsewhere": float(ends[counts & ~real].mean())}


@torch.no_grad()
def value_gaps(
    world_model: PWMWorldModel,
    value_network: nn.Module,
    episodes: Iterable[Mapping[str, Any]],
    *,
    gamma: float,
    task: int | None = None,
) -> np.ndarray:
    """V - G of each recorded state: what the critics promise, minus the discounted return that the data earned there.

    The critics value the policy, the return is that of the recorded behaviour. Where the policy stays near that
    behaviour, a mean far above zero is a promise that nothing in the data supports. An episode that was cut off is
    closed with the critics' value of its last observation, one that was terminated with nothing.

    Args:
        world_model: the frozen model.
        value_network: see :func:`~torchrl_pwm.make_value_ensemble`; its smallest value counts.
        episodes: mappings with ``observation`` [E + 1, O], ``action``, ``reward`` [E] and ``terminated``.
        gamma: discount.
        task: index of the task, for a multi-task model.

    Returns:
        The gaps of all steps of all episodes, float64.
    """
    like, gaps = next(world_model.parameters()), []
    for episode in episodes:
        observation = torch.as_tensor(np.array(episode["observation"], np.float32), device=like.device)
        index = None if task is None else torch.full(observation.shape[:1], task, device=like.device)
        state = TensorDict({"latent": world_model.encode_observation(observation, index)}, observation.shape[:1])
        if index is not None:
            state.set("task", index)
        value = value_network(state)["state_value"].amin(0).squeeze(-1).double().cpu().numpy()
        reward, earned = np.asarray(episode["reward"], np.float64), 0.0 if episode["terminated"] else float(value[-1])
        returns = np.empty(len(reward))
        for step in reversed(range(len(reward))):
            earned = returns[step] = reward[step] + gamma * earned
        gaps.append(value[:-1] - returns)
    return np.concatenate(gaps)


@torch.no_grad()
def distance_from_data(states: Tensor, data: Tensor, other: Tensor) -> float:
    """Mean distance of ``states`` [N, D] to their nearest ``data`` [M, D], in units of that of ``other`` [K, D].

    Args:
        states: latents of imagined states.
        data: latents of states that were learned from.
        other: latents of states that were held out.

    Examples:
        >>> data = torch.arange(8.0)[:, None]
        >>> round(distance_from_data(torch.tensor([[2.4]]), data, torch.tensor([[5.2]])), 3)
        2.0
    """
    near, far = (torch.cdist(each, data).amin(1).mean() for each in (other, states))
    return float(far / near.clamp_min(torch.finfo(near.dtype).tiny))
