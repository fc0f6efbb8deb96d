"""Differentiable simulators as batched TorchRL envs.

Every name is imported on first use, so that this folder loads without a simulator installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_pwm._utils.lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_pwm.envs.simulators.analytic import AnalyticEnv
    from torchrl_pwm.envs.simulators.base import Simulator, SimulatorStep
    from torchrl_pwm.envs.simulators.controllers import SwingUpController
    from torchrl_pwm.envs.simulators.dflex import DFlexEnv, DFlexWrapper
    from torchrl_pwm.envs.simulators.env import SimulatorEnv
    from torchrl_pwm.envs.simulators.isaac_gym import IsaacGymEnv
    from torchrl_pwm.envs.simulators.newton.env import NewtonEnv
    from torchrl_pwm.envs.simulators.rewarped import RewarpedEnv
    from torchrl_pwm.envs.simulators.shims import compatibility_shim

_HOME = {
    "AnalyticEnv": "analytic",
    "DFlexEnv": "dflex",
    "DFlexWrapper": "dflex",
    "IsaacGymEnv": "isaac_gym",
    "NewtonEnv": "newton.env",
    "RewarpedEnv": "rewarped",
    "Simulator": "base",
    "SimulatorEnv": "env",
    "SimulatorStep": "base",
    "SwingUpController": "controllers",
    "compatibility_shim": "shims",
}

__all__ = [
    "AnalyticEnv",
    "DFlexEnv",
    "DFlexWrapper",
    "IsaacGymEnv",
    "NewtonEnv",
    "RewarpedEnv",
    "Simulator",
    "SimulatorEnv",
    "SimulatorStep",
    "SwingUpController",
    "compatibility_shim",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
