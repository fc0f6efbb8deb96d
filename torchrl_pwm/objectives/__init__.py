"""Loss modules: first-order policy objectives and world-model training."""

from __future__ import annotations

from torchrl_pwm.objectives.first_order import FirstOrderLoss
from torchrl_pwm.objectives.pwm import PWMLoss
from torchrl_pwm.objectives.shac import SHACLoss
from torchrl_pwm.objectives.tdmpc2 import TDMPC2Loss, TDMPC2Noise
from torchrl_pwm.objectives.world_model import PWMWorldModelLoss

__all__ = ["FirstOrderLoss", "PWMLoss", "PWMWorldModelLoss", "SHACLoss", "TDMPC2Loss", "TDMPC2Noise"]
