"""The state of an env, as a part of a checkpoint, and its episodes as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_pwm._utils.torchrl_private import lower_flags
from torchrl_pwm.envs.multitask import innermost_env
from torchrl_pwm.envs.simulators import SimulatorEnv


def has_state(env: EnvBase) -> bool:
    """Whether :func:`save_env` saves all that the env's later steps depend on."""
    return isinstance(innermost_env(env), SimulatorEnv)


@contextlib.contextmanager
def whole_episodes(env: EnvBase) -> Iterator[None]:
    """No first episode is cut short: without the ``stagger`` of a simulator's training env."""
    base = innermost_env(env)
    if not isinstance(base, SimulatorEnv):
        yield
        return
    staggered, base.stagger = base.stagger, False
    try:
        yield
    finally:
        base.stagger = staggered


def save_env(env: EnvBase, td: TensorDictBase | None) -> dict[str, Any]:
    """The state of a simulator and of its transforms, and the TensorDict of the step that it stands at.

    Of other envs, what they hold as state beside that of the running episodes.
    """
    return {
        "simulator": innermost_env(env).state_dict(),
        # Of a TransformedEnv, TorchRL saves the transforms alone.
        "transforms": env.state_dict() if isinstance(env, TransformedEnv) else None,
        "carrier": None if td is None else td.detach().to_dict(),
    }


def load_env(env: EnvBase, state: Mapping[str, Any]) -> TensorDictBase | None:
    """Puts the env where :func:`save_env` found it, and returns the TensorDict of that step."""
    innermost_env(env).load_state_dict(state["simulator"])
    if isinstance(env, TransformedEnv):
        env.load_state_dict(state["transforms"])
    lower_flags(innermost_env(env))
    entries = state["carrier"]
    return None if entries is None else TensorDict(entries, env.batch_size, device=env.device)
