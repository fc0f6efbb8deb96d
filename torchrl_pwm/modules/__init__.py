"""Networks: the world model, the actor, the critics and their parts."""

from __future__ import annotations

from torchrl_pwm.modules.actor_critic import (
    GaussianHead,
    PWMActor,
    ValueEnsemble,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.modules.layers import NormedLinear, SimNorm, make_mlp
from torchrl_pwm.modules.running_moments import RunningMoments
from torchrl_pwm.modules.two_hot import TwoHotCodec, symexp, symlog
from torchrl_pwm.modules.world_model import PWMWorldModel, TaskContext

__all__ = [
    "GaussianHead",
    "NormedLinear",
    "PWMActor",
    "PWMWorldModel",
    "RunningMoments",
    "SimNorm",
    "TaskContext",
    "TwoHotCodec",
    "ValueEnsemble",
    "make_mlp",
    "make_pwm_actor",
    "make_value_ensemble",
    "symexp",
    "symlog",
]
