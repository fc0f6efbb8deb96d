"""Trainers: world-model pre-training and policy extraction from replay buffers."""

from __future__ import annotations

from torchrl_pwm.trainers.base import ReplayTrainer
from torchrl_pwm.trainers.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from torchrl_pwm.trainers.pwm import PWMTrainer
from torchrl_pwm.trainers.steppers import PWMOptimizationStepper, WorldModelOptimizationStepper
from torchrl_pwm.trainers.world_model import WorldModelTrainer

__all__ = [
    "PWMOptimizationStepper",
    "PWMTrainer",
    "ReplayTrainer",
    "WorldModelOptimizationStepper",
    "WorldModelTrainer",
    "has_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
