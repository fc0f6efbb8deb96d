"""Trainers: world-model pre-training, policy extraction from replay buffers, online PWM, SHAC and TD-MPC2."""

from __future__ import annotations

from torchrl_pwm._utils.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from torchrl_pwm.trainers.collected import OnlineTrainer
from torchrl_pwm.trainers.pwm import OnlinePWMOptimizationStepper, OnlinePWMTrainer, PWMTrainer, WorldModelTrainer
from torchrl_pwm.trainers.shac import SHACOptimizationStepper, SHACTrainer
from torchrl_pwm.trainers.steppers import (
    FirstOrderOptimizationStepper,
    PWMOptimizationStepper,
    WorldModelOptimizationStepper,
)
from torchrl_pwm.trainers.tdmpc2 import (
    OnlineTDMPC2OptimizationStepper,
    OnlineTDMPC2Trainer,
    TDMPC2OptimizationStepper,
    TDMPC2Trainer,
)
from torchrl_pwm.trainers.trainer import ReplayTrainer, UpdateTrainer

__all__ = [
    "FirstOrderOptimizationStepper",
    "OnlinePWMOptimizationStepper",
    "OnlinePWMTrainer",
    "OnlineTDMPC2OptimizationStepper",
    "OnlineTDMPC2Trainer",
    "OnlineTrainer",
    "PWMOptimizationStepper",
    "PWMTrainer",
    "ReplayTrainer",
    "SHACOptimizationStepper",
    "SHACTrainer",
    "TDMPC2OptimizationStepper",
    "TDMPC2Trainer",
    "UpdateTrainer",
    "WorldModelOptimizationStepper",
    "WorldModelTrainer",
    "has_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
