"""Policy-seeded MPPI in a world model: pure functions of tensors, over many envs and tasks at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchrl_pwm.modules.heads import HeadsContext
from torchrl_pwm.modules.multitask import TaskContext
from torchrl_pwm.modules.tdmpc2 import TDMPC2Model

Context = TaskContext | HeadsContext | Tensor | int | None


@dataclass(frozen=True)
class PlannerSettings:
    """Sizes of the search; see :class:`~torchrl_pwm.TDMPC2Planner`.

    Raises:
        ValueError: if a number is out of its range, or they do not fit together.
    """

    horizon: int = 3
    iterations: int = 6
    num_samples: int = 512
    num_policy_rollouts: int = 24
    num_elites: int = 64
    temperature: float = 0.5
    min_std: float = 0.05
    max_std: float = 2.0

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.iterations < 1:
            raise ValueError(f"horizon and iterations must be at least 1, found {self.horizon} and {self.iterations}.")
        if not (1 <= self.num_elites <= self.num_samples and 0 <= self.num_policy_rollouts <= self.num_samples):
            raise ValueError(
                "num_elites (at least 1) and num_policy_rollouts (at least 0) must be at most num_samples, found "
                f"{self.num_elites}, {self.num_policy_rollouts} and {self.num_samples}."
            )
        if not (0.0 < self.min_std <= self.max_std and self.temperature > 0.0):
            raise ValueError(
                "temperature must be above 0, and 0 < min_std <= max_std, found "
                f"{self.temperature}, {self.min_std} and {self.max_std}."
            )


class PlannerNoise(NamedTuple):
    """Every random number of a call, of B envs, with the names of :class:`PlannerSettings`.

    Standard normal, but for ``members`` (indices of Q functions) and ``elite`` (standard Gumbel).
    """

    policy: Tensor  # [horizon, num_policy_rollouts, B, A]
    samples: Tensor  # [iterations, horizon, num_samples - num_policy_rollouts, B, A]
    terminal: Tensor  # [iterations, num_samples, B, A], for the policy at the end of the horizon
    members: Tensor  # [iterations, 2]
    elite: Tensor  # [num_elites, B]
    action: Tensor  # [B, A]


class Plan(NamedTuple):
    """Result of one iteration: the next search distribution, and the elites that it comes from."""

    mean: Tensor  # [horizon, B, A]
    std: Tensor  # [horizon, B, A]
    actions: Tensor  # [horizon, num_samples, B, A], clipped and masked
    value: Tensor  # [num_samples, B]
    elites: Tensor  # [num_elites, B], best first
    score: Tensor  # [num_elites, B], sums to 1


def plan_actions(
    model: TDMPC2Model,
    latent: Tensor,
    task: Tensor | None,
    previous: Tensor,
    noise: PlannerNoise,
    settings: PlannerSettings,
) -> tuple[Tensor, Tensor, Plan]:
    """Searches the next ``horizon`` actions of B envs, each with its own task and warm start.

    Args:
        model (TDMPC2Model): where actions are tried.
        latent (Tensor): ``[B, D]``, where the envs are.
        task (Tensor, optional): ``[B]``.
        previous (Tensor): ``[horizon, B, A]``, the mean of the previous plan, zero where there is none.
        noise (PlannerNoise): all random numbers.
        settings (PlannerSettings): sizes.

    Returns:
        The chosen first action ``[B, A]`` without and with exploration noise, and the last :class:`Plan`.
    """
    context = model.world_model.task_context(task)
    candidates = policy_rollouts(model, latent, task, context, noise.policy)
    mean = torch.cat([previous[1:], torch.zeros_like(previous[:1])])
    std = torch.full_like(mean, settings.max_std)
    plan = None
    for iteration in range(settings.iterations):
        plan = improve(
            model, latent, task, context, mean, std, candidates, noise.samples[iteration], noise.terminal[iteration],
            noise.members[iteration], settings,
        )  # fmt: skip
        mean, std = plan.mean, plan.std
    assert plan is not None
    chosen = (plan.score.log() + noise.elite).argmax(0, keepdim=True)
    sample = plan.elites.gather(0, chosen)
    action = _of_samples(plan.actions[:1], sample)[0, 0]
    return action, (action + std[0] * noise.action).clamp(-1, 1), plan


def improve(
    model: TDMPC2Model,
    latent: Tensor,
    task: Tensor | None,
    context: Context,
    mean: Tensor,
    std: Tensor,
    candidates: Tensor,
    samples: Tensor,
    terminal: Tensor,
    members: Tensor,
    settings: PlannerSettings,
) -> Plan:
    """One iteration: try policy rollouts and samples of N(mean, std), and refit to the best, weighted by value.

    score = softmax(temperature (v - max v)) over the elites; mean and std are the score-weighted moments.
    """
    sampled = (mean.unsqueeze(1) + std.unsqueeze(1) * samples).clamp(-1, 1)
    actions = torch.cat([candidates, sampled], 1)
    mask = model.action_mask(task)
    if mask is not None:
        actions = actions * mask
    value = rollout_value(model, latent, task, context, actions, terminal, members)
    best, elites = value.topk(settings.num_elites, 0)
    score = (settings.temperature * (best - best[:1])).softmax(0)
    elite_actions, weight = _of_samples(actions, elites), score.unsqueeze(-1)
    mean = (weight * elite_actions).sum(1)
    spread = (weight * (elite_actions - mean.unsqueeze(1)).square()).sum(1).sqrt()
    std = spread.clamp(settings.min_std, settings.max_std)
    if mask is not None:
        mean, std = mean * mask, std * mask
    return Plan(mean, std, actions, value, elites, score)


def policy_rollouts(model: TDMPC2Model, latent: Tensor, task: Tensor | None, context: Context, noise: Tensor) -> Tensor:
    """Actions [H, P, B, A] of the policy prior from ``latent`` [B, D], with noise [H, P, B, A]."""
    latent = latent.expand(noise.shape[1], -1, -1)
    actions: list[Tensor] = []
    for eps in noise:
        if actions:
            latent = model.world_model.next_latent(latent, actions[-1], context)
        actions.append(model.act(latent, task, eps).action)
    return torch.stack(actions)


def rollout_value(
    model: TDMPC2Model,
    latent: Tensor,
    task: Tensor | None,
    context: Context,
    actions: Tensor,
    terminal: Tensor,
    members: Tensor,
) -> Tensor:
    """v = sum_h g^h r_h + g^H Q(z_H, pi(z_H)): actions [H, N, B, A] from ``latent`` [B, D] to [N, B].

    With a termination head nothing is counted after a step that probably ends the episode.
    """
    world_model, rate = model.world_model, model.discount_of(task)
    latent = latent.expand(actions.shape[1], -1, -1)
    weight = torch.ones_like(actions[0, ..., :1])
    value = torch.zeros_like(weight)
    for action in actions:
        value = value + weight * world_model.decode_reward(world_model.reward_logits(latent, action, context))
        latent = world_model.next_latent(latent, action, context)
        weight = weight * rate
        if model.termination_head is not None:
            weight = weight * (model.termination_logits(latent, task) <= 0)
    last = model.act(latent, task, terminal).action
    value = value + weight * model.q_value(latent, last, task, members=members, dropout=False)
    return value.squeeze(-1)


def draw_noise(
    settings: PlannerSettings, model: TDMPC2Model, latent: Tensor, generator: torch.Generator | None
) -> PlannerNoise:
    """Fresh noise for ``latent`` [B, D], on its device, from ``generator`` or the global one."""
    envs, action_dim = latent.shape[0], model.world_model.action_dim
    horizon, iterations, policies = settings.horizon, settings.iterations, settings.num_policy_rollouts

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, envs, action_dim, generator=generator, dtype=latent.dtype, device=latent.device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=latent.dtype, device=latent.device)

    # -log of an exponential variate is standard Gumbel; the floor keeps both logarithms finite
    gumbel = -(-uniform(settings.num_elites, envs).clamp_min(1e-20).log()).clamp_min(1e-20).log()
    return PlannerNoise(
        policy=normal(horizon, policies),
        samples=normal(iterations, horizon, settings.num_samples - policies),
        terminal=normal(iterations, settings.num_samples),
        members=uniform(iterations, model.q.num_nets).argsort(-1)[:, :2],
        elite=gumbel,
        action=normal(),
    )


def _of_samples(actions: Tensor, index: Tensor) -> Tensor:
    """Picks samples env by env: [H, N, B, A] and an index [E, B] to [H, E, B, A]."""
    shape = (actions.shape[0], *index.shape, actions.shape[-1])
    return actions.gather(1, index.unsqueeze(-1).expand(shape))
