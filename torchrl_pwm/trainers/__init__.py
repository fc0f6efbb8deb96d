"""Trainers: world-model pre-training, policy extraction from replay buffers, and SHAC in simulators."""

from __future__ import annotations

from torchrl_pwm.trainers.base import ReplayTrainer, UpdateTrainer
from torchrl_pwm.trainers.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from torchrl_pwm.trainers.collected import OnlineTrainer
from torchrl_pwm.trainers.online import OnlinePWMOptimizationStepper, OnlinePWMTrainer
from torchrl_pwm.trainers.pwm import PWMTrainer
from torchrl_pwm.trainers.shac import SHACOptimizationStepper, SHACTrainer
from torchrl_pwm.trainers.steppers import (
    FirstOrderOptimizationStepper,
    PWMOptimizationStepper,
    WorldModelOptimizationStepper,
)
from torchrl_pwm.trainers.tdmpc2 import TDMPC2OptimizationStepper
from torchrl_pwm.trainers.world_model import WorldModelTrainer

__all__ = [
    "FirstOrderOptimizationStepper",
    "OnlinePWMOptimizationStepper",
    "OnlinePWMTrainer",
    "OnlineTrainer",
    "PWMOptimizationStepper",
    "PWMTrainer",
    "ReplayTrainer",
    "SHACOptimizationStepper",
    "SHACTrainer",
    "TDMPC2OptimizationStepper",
    "UpdateTrainer",
    "WorldModelOptimizationStepper",
    "WorldModelTrainer",
    "has_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
