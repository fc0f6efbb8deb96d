"""Sequences of actions, and the transitions of a simulator env under them."""

from __future__ import annotations

import torch


def draw_actions(env, steps, scale=1.0, seed=0, num_envs=None):
    """Uniform actions [steps, N, A] in [-scale, scale]."""
    shape = (steps, num_envs or env.num_envs, env.action_spec.shape[-1])
    return scale * (2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1)


def follow(env, actions, td=None):
    """Transitions [T, N] of ``actions`` [T, N, A], if there are any, and where the env stands then."""
    td = env.reset() if td is None else td
    transitions = []
    for action in actions:
        transition, td = env.step_and_maybe_reset(td.set("action", action))
        transitions.append(transition)
    return torch.stack(transitions) if transitions else None, td


def play(env, td, actions):
    """Rewards [T, N, 1] of ``actions`` [T, N, A], and where the env stands then."""
    transitions, td = follow(env, actions, td)
    return transitions["next", "reward"], td
