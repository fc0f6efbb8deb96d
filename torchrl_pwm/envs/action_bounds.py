"""Bounds of actions: a policy that acts in [-1, 1] in an env that is as wide, and actions that an env can take."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import nn
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.envs import EnvBase

from torchrl_pwm.modules import PWMWorldModel, TDMPC2Model

__all__ = ["check_action", "check_bounds", "check_policy_bounds"]

_TOLERANCE = 1e-3


def check_bounds(env: EnvBase, key: NestedKey) -> None:
    """Raises ValueError if the env's actions are discrete, or bounded by others than -1 and 1."""
    spec = env.full_action_spec[key]
    if getattr(spec, "domain", None) == "discrete":
        raise ValueError(
            f"The policy's actions are continuous, those of the env discrete, {type(spec).__name__} of shape "
            f"{list(spec.shape)}: take an env with continuous actions."
        )
    if not isinstance(spec, Bounded):
        return
    low, high = spec.space.low, spec.space.high
    if not _near(low, -1) or not _near(high, 1):
        bounds = f"[{low.min().item():g}, {high.max().item():g}]"
        advice = (
            "wrap it in TransformedEnv(env, ActionScaling()) of torchrl.envs"
            if low.isfinite().all() and high.isfinite().all()
            else "give it finite bounds (gymnasium.wrappers.RescaleAction needs them, too), then add ActionScaling()"
        )
        raise ValueError(f"The policy acts in [-1, 1], the env in {bounds}: {advice}.")


def check_policy_bounds(policy: Any, env: EnvBase) -> None:
    """Raises ValueError if a policy of [-1, 1], which one of this package is, meets an env of other bounds."""
    if isinstance(policy, nn.Module):
        for key in env.action_keys:
            if any(_acts_in_unit_box(part, key) for part in policy.modules()):
                check_bounds(env, key)


def check_action(state: TensorDictBase, env: EnvBase) -> None:
    """Raises ValueError if an action has another shape than the env's, or leaves the env's bounds."""
    for key, spec in env.full_action_spec.items(True, True):
        action = state.get(key, None)
        if action is None or not isinstance(spec, TensorSpec):
            continue
        if action.shape != spec.shape:
            raise ValueError(
                f"The env reads {key!r} of shape {list(spec.shape)}, the policy wrote {list(action.shape)}: take a "
                "policy of this env's size; one for a task set acts in make_task_env(..., task_set=...)."
            )
        if isinstance(spec, Bounded) and action.is_floating_point():
            low, high = spec.space.low.to(action.device), spec.space.high.to(action.device)
            if bool(((action < low - _TOLERANCE) | (action > high + _TOLERANCE)).any()):
                raise ValueError(
                    f"The env takes {key!r} from {low.min():g} to {high.max():g}, the policy wrote {action.min():g} to "
                    f"{action.max():g}: bound it (tanh), or scale the env with ActionScaling() of torchrl.envs."
                )


def _acts_in_unit_box(part: nn.Module, key: NestedKey) -> bool:
    if isinstance(part, (PWMWorldModel, TDMPC2Model)):
        return True
    spec: Any = getattr(part, "spec", None)
    leaf = spec.get(key, None) if isinstance(spec, Composite) else spec
    return isinstance(leaf, Bounded) and _near(leaf.space.low, -1) and _near(leaf.space.high, 1)


def _near(bound: torch.Tensor, value: float) -> bool:
    return bool(((bound - value).abs() <= _TOLERANCE).all())
