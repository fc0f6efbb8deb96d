"""What critics promise minus what episodes went on to earn, V - G, with the end of an episode closed in two ways."""

from __future__ import annotations

import dataclasses

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from torchrl_pwm.evaluation.open_loop import counting_steps
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.modules.two_hot import RewardSpace

__all__ = ["FAINT", "ValueGap", "closed_returns", "smallest_value", "value_gap"]

FAINT = 0.01  # of the largest reward: by so much a step may be wrong without a word


@dataclasses.dataclass(frozen=True)
class ValueGap:
    """V - G of the states of whole episodes, in the space of the reward that the critics sum.

    An episode that terminated has earned all it could. What one would have earned that a time limit cut off is not
    known, so that there are two numbers.

    Args:
        closed: mean V - G with the critics' own value of the last state after a cut. What they promise too much beyond
            it is not seen: of a policy without end it is a share 1 - gamma^n of the gap, n steps before the cut.
        open: mean V - G with nothing after a cut. Where rewards are positive an honest policy is above 0 by it too, and
            in short episodes far above.
        value: mean size of V.
        earned: mean size of G, closed.
        raw: ``closed`` in raw units; None where the critics sum symlog rewards, for which it is not defined.
        cut: share of the episodes that a time limit cut off.
        faint: what a hundredth of the largest reward in each step adds up to.
    """

    closed: float
    open: float
    value: float
    earned: float
    raw: float | None
    cut: float
    faint: float


@torch.no_grad()
def value_gap(
    world_model: PWMWorldModel,
    value_network: nn.Module,
    episodes: TensorDictBase,
    *,
    gamma: float = 0.99,
    reward_space: RewardSpace = "symlog",
    reward_scale: float = 1.0,
) -> ValueGap:
    """V - G at the states of whole episodes of the policy that the critics value.

    Args:
        world_model: the model whose latents the critics read.
        value_network: see :func:`~torchrl_pwm.make_value_ensemble`; its smallest value counts.
        episodes: [E, L] with ``observation`` (or ``latent``), here and under ``"next"``, ``("next", "reward")``,
            ``("next", "terminated")`` and, for a multi-task model, ``task``; shorter ones are filled up and marked by
            ``("collector", "mask")``.
        gamma: discount of the critics.
        reward_space, reward_scale: of the loss that trained them, see :class:`~torchrl_pwm.PWMLoss`.

    Examples:
        >>> from torchrl_pwm import make_value_ensemble
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> batch = TensorDict({"observation": torch.randn(4, 9, 5)}, [4, 9])
        >>> ends = torch.zeros(4, 9, 1, dtype=torch.bool)
        >>> batch["next"] = batch.clone().update({"reward": torch.ones(4, 9, 1), "terminated": ends})
        >>> gap = value_gap(model, make_value_ensemble(16), batch, reward_space="raw")
        >>> gap.open < gap.closed or gap.value > 0
        True
    """
    counts, task = counting_steps(episodes), episodes["task"] if world_model.num_tasks else None
    value = smallest_value(value_network, _latent(world_model, episodes, task), task)
    end = counts.sum(1) - 1
    last = episodes[torch.arange(len(episodes), device=end.device), end]
    index = last["task"] if world_model.num_tasks else None
    tail = smallest_value(value_network, _latent(world_model, last["next"], index), index)
    terminated = last["next", "terminated"].squeeze(-1)
    raw = episodes["next", "reward"].squeeze(-1).double()
    unit, reward = _unit(world_model, reward_space), world_model.encode_reward(raw, reward_space) * reward_scale
    nothing = torch.zeros_like(tail)
    closed, opened = (
        closed_returns(reward, torch.where(terminated, nothing, after), gamma=gamma, counts=counts)
        for after in (tail, nothing)
    )
    gap = float((value - closed)[counts].mean())
    return ValueGap(
        closed=gap,
        open=float((value - opened)[counts].mean()),
        value=float(value[counts].abs().mean()),
        earned=float(closed[counts].abs().mean()),
        # a shift of all rewards is in V and in G alike
        raw=None if unit is None else unit * gap / reward_scale,
        cut=float((~terminated).double().mean()),
        faint=FAINT * float(reward[counts].abs().max()) / max(1.0 - gamma, 1.0 / reward.shape[1]),
    )


def _latent(world_model: PWMWorldModel, states: TensorDictBase, task: Tensor | None) -> Tensor:
    """Of the observation where there is one: imagined states have none."""
    observation = states.get("observation", None)
    return states["latent"] if observation is None else world_model.encode_observation(observation, task)


def smallest_value(value_network: nn.Module, latent: Tensor, task: Tensor | None = None) -> Tensor:
    """V [*] of latents [*, D] in float64: the minimum over the ensemble."""
    state = TensorDict({"latent": latent}, latent.shape[:-1])
    if task is not None:
        state.set("task", task)
    value: Tensor = value_network(state)["state_value"]
    return (value.amin(0) if value.ndim > latent.ndim else value).squeeze(-1).double()


def closed_returns(reward: Tensor, tail: Tensor, *, gamma: float, counts: Tensor | None = None) -> Tensor:
    """G [*, T], from each step on: the discounted rewards [*, T], and ``tail`` [*] after the last step that counts.

    Examples:
        >>> closed_returns(torch.tensor([1.0, 2.0, 4.0]), torch.tensor(8.0), gamma=0.5)
        tensor([4., 6., 8.])
    """
    earned, returns = tail.to(reward), torch.empty_like(reward)
    for step in reversed(range(reward.shape[-1])):
        following = reward[..., step] + gamma * earned
        earned = following if counts is None else torch.where(counts[..., step], following, earned)
        returns[..., step] = earned
    return returns


def _unit(world_model: PWMWorldModel, space: RewardSpace) -> float | None:
    """The raw reward by unit of those that the loss sums; of symlog rewards there is none."""
    moments = world_model.reward_moments
    if space == "raw" or (moments is None and not world_model.num_bins):
        return 1.0
    if moments is None:
        return None
    size = moments.std.square() + moments.mean.square() if world_model.termination else moments.std.square()
    return float(size.sqrt())
