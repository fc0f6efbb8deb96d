"""How far policies of the Newton ant go, which returns hardly tell: one that stands earns more than one that falls."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from tensordict import TensorDictBase
from torchrl.envs import Transform, TransformedEnv

from torchrl_pwm import evaluate_policy
from torchrl_pwm.envs.random_policy import RandomPolicy

# Of the ant's observation: the torso's forward speed [m/s]; a step lasts 1/60 s.
_FORWARD_SPEED, _STEP, _ACTIONS = 5, 1 / 60, 8


class ForwardProgress(Transform):
    """The metres that a step leads forward, in place of its reward."""

    def __init__(self) -> None:
        super().__init__(in_keys=["reward"], out_keys=["reward"])

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        speed = next_tensordict["observation"][..., _FORWARD_SPEED, None]
        return next_tensordict.set("reward", speed * _STEP)


def forward_progress(policy: Any, config: Any) -> float:
    """Mean forward progress [m] of the episodes of the final evaluation."""
    count, seed = config.evaluation.episodes, config.evaluation.seed
    env = TransformedEnv(instantiate(config.env, num_envs=count), ForwardProgress())
    return evaluate_policy(policy, env, episodes=count, seed=seed, task=config.task).return_mean


def random_progress(seed: int, config: Any) -> float:
    """:func:`forward_progress` of uniform actions in [-1, 1]."""
    return forward_progress(RandomPolicy(_ACTIONS, seed), config)
