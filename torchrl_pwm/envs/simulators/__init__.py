"""Differentiable simulators as batched TorchRL envs.

Every name is imported on first use, so that this folder loads without a simulator installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_pwm._lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_pwm.envs.simulators.analytic import AnalyticEnv
    from torchrl_pwm.envs.simulators.base import Simulator, SimulatorStep
    from torchrl_pwm.envs.simulators.controllers import SwingUpController
    from torchrl_pwm.envs.simulators.env import SimulatorEnv
    from torchrl_pwm.envs.simulators.newton.env import NewtonEnv

_HOME = {
    "AnalyticEnv": "analytic",
    "NewtonEnv": "newton.env",
    "Simulator": "base",
    "SimulatorEnv": "env",
    "SimulatorStep": "base",
    "SwingUpController": "controllers",
}

__all__ = ["AnalyticEnv", "NewtonEnv", "Simulator", "SimulatorEnv", "SimulatorStep", "SwingUpController"]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
