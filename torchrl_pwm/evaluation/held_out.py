"""How far a policy of recorded data can be trusted: its model and its critics on episodes that were held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_pwm.evaluation.open_loop import counting_steps, open_loop, open_loop_errors
from torchrl_pwm.evaluation.value_gaps import closed_returns, smallest_value
from torchrl_pwm.modules import PWMWorldModel

__all__ = ["distance_from_data", "open_loop_ends", "open_loop_errors", "value_gaps"]


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
    ends = torch.sigmoid(world_model.termination_logits(open_loop(world_model, sequences)[1], task)).squeeze(-1)
    real, counts = sequences["next", "terminated"].squeeze(-1), counting_steps(sequences)
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
        value = smallest_value(value_network, world_model.encode_observation(observation, index), index).cpu()
        reward = torch.as_tensor(np.array(episode["reward"], np.float64))
        returns = closed_returns(reward, torch.zeros(()) if episode["terminated"] else value[-1], gamma=gamma)
        gaps.append((value[:-1] - returns).numpy())
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
