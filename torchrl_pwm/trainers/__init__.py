"""Trainers: world-model training, policy extraction, online PWM, SHAC and TD-MPC2, one visible loop each.

Every name is imported on first use.
"""

from __future__ import annotations

from torchrl_pwm._utils.lazy import lazy_exports

_HOME = {
    "FirstOrderOptimizationStepper": "steppers",
    "OnlinePWMOptimizationStepper": "pwm",
    "OnlinePWMTrainer": "pwm",
    "OnlineTDMPC2OptimizationStepper": "tdmpc2",
    "OnlineTDMPC2Trainer": "tdmpc2",
    "OnlineTrainer": "trainer",
    "PWMOptimizationStepper": "steppers",
    "PWMTrainer": "pwm",
    "PolicyAverage": "hooks",
    "ReplayTrainer": "trainer",
    "SHACOptimizationStepper": "shac",
    "SHACTrainer": "shac",
    "TDMPC2OptimizationStepper": "tdmpc2",
    "TDMPC2Trainer": "tdmpc2",
    "Trainer": "trainer",
    "WorldModelOptimizationStepper": "steppers",
    "WorldModelTrainer": "pwm",
    "clone_behavior": "imitation",
    "has_checkpoint": "trainer",
    "load_checkpoint": "trainer",
    "save_checkpoint": "trainer",
}

__all__ = sorted(_HOME)

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
