"""PWM (policy learning with multi-task world models) as TorchRL components.

Every public name is imported on first use, so that ``import torchrl_pwm`` is quick and needs none of the
optional packages.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "torchrl_pwm.modules": (
        "PWMWorldModel",
        "make_pwm_actor",
        "make_value_ensemble",
        "SimNorm",
        "NormedLinear",
        "TwoHotCodec",
    ),
    "torchrl_pwm.objectives": ("FirstOrderLoss", "PWMLoss", "PWMWorldModelLoss"),
    "torchrl_pwm.envs": (
        "WorldModelWrapper",
        "ImaginedEnv",
        "MT30",
        "MT80",
        "make_task_env",
        "restore_state",
    ),
    "torchrl_pwm.data": ("TDMPC2ExperienceReplay", "convert_shards", "collect_dataset"),
    "torchrl_pwm.evaluation": ("evaluate_policy",),
    "torchrl_pwm.trainers": ("PWMTrainer", "WorldModelTrainer"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
