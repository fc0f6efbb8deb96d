"""Networks: the world model, the actor, the critics and their parts."""

from __future__ import annotations

from torchrl.modules import symexp, symlog

from torchrl_pwm.modules.actor_critic import (
    GaussianHead,
    PWMActor,
    ValueEnsemble,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.modules.disagreement import DynamicsEnsemble
from torchrl_pwm.modules.layers import NormedLinear, SimNorm, make_mlp
from torchrl_pwm.modules.multitask import TaskContext
from torchrl_pwm.modules.normalizer import ObservationNormalizer
from torchrl_pwm.modules.policy import WorldModelPolicy
from torchrl_pwm.modules.q_ensemble import QEnsemble
from torchrl_pwm.modules.quickstart import QUICKSTART_FILE, Quickstart, load_quickstart, pack_quickstart
from torchrl_pwm.modules.running_statistics import PercentileScale, RunningMoments
from torchrl_pwm.modules.tdmpc2 import PolicySample, TDMPC2Model
from torchrl_pwm.modules.two_hot import TwoHotCodec
from torchrl_pwm.modules.world_model import PWMWorldModel

__all__ = [
    "QUICKSTART_FILE",
    "DynamicsEnsemble",
    "GaussianHead",
    "NormedLinear",
    "ObservationNormalizer",
    "PWMActor",
    "PWMWorldModel",
    "PercentileScale",
    "PolicySample",
    "QEnsemble",
    "Quickstart",
    "RunningMoments",
    "SimNorm",
    "TDMPC2Model",
    "TaskContext",
    "TwoHotCodec",
    "ValueEnsemble",
    "WorldModelPolicy",
    "load_quickstart",
    "make_mlp",
    "make_pwm_actor",
    "make_value_ensemble",
    "pack_quickstart",
    "symexp",
    "symlog",
]
