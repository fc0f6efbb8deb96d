"""PWM (policy learning with multi-task world models) as TorchRL components.

Every public name is imported on first use, so that ``import torchrl_pwm`` is quick and needs none of the
optional packages.
"""

from __future__ import annotations

from torchrl_pwm._utils.lazy import lazy_exports

__version__ = "0.1.0"

_EXPORTS = {
    "modules": (
        "PWMWorldModel",
        "DynamicsEnsemble",
        "make_pwm_actor",
        "make_value_ensemble",
        "SimNorm",
        "TDMPC2Model",
        "NormedLinear",
        "ObservationNormalizer",
        "TwoHotCodec",
        "WorldModelPolicy",
    ),
    "objectives": ("FirstOrderLoss", "PWMLoss", "PWMWorldModelLoss", "SHACLoss", "TDMPC2Loss"),
    "envs": (
        "WorldModelWrapper",
        "ImaginedEnv",
        "MT30",
        "MT80",
        "make_gym_env",
        "make_task_env",
        "restore_state",
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
    ),
    "data": ("TDMPC2ExperienceReplay", "convert_shards", "collect_dataset"),
    "evaluation": ("evaluate_policy",),
    "planners": ("TDMPC2Planner",),
    "trainers": (
        "OnlinePWMTrainer",
        "OnlineTDMPC2Trainer",
        "PWMTrainer",
        "SHACTrainer",
        "TDMPC2Trainer",
        "WorldModelTrainer",
    ),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]

__getattr__, __dir__ = lazy_exports(__name__, _HOME, "__version__")
