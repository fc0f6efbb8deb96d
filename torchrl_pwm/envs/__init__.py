"""Environments: the MT30 and MT80 tasks, the world-model transform and the imagined env.

Every name is imported on first use, so that this folder loads without a simulator installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_pwm._utils.lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_pwm.envs.gymnasium_env import make_gym_env
    from torchrl_pwm.envs.imagined import ImaginedEnv
    from torchrl_pwm.envs.multitask import make_task_env, make_task_envs, raw_reward, restore_state
    from torchrl_pwm.envs.scripted import ScriptedPolicy
    from torchrl_pwm.envs.simulators import (
        AnalyticEnv,
        DFlexEnv,
        DFlexWrapper,
        IsaacGymEnv,
        NewtonEnv,
        RewarpedEnv,
        Simulator,
        SimulatorEnv,
        SimulatorStep,
        SwingUpController,
        compatibility_shim,
    )
    from torchrl_pwm.envs.tasks import MT30, MT80, TaskSet, TaskSpec, get_task_set, get_task_spec
    from torchrl_pwm.envs.world_model import WorldModelWrapper

_HOME = {
    "AnalyticEnv": "simulators",
    "DFlexEnv": "simulators",
    "DFlexWrapper": "simulators",
    "ImaginedEnv": "world_model",
    "IsaacGymEnv": "simulators",
    "MT30": "tasks",
    "MT80": "tasks",
    "NewtonEnv": "simulators",
    "RewarpedEnv": "simulators",
    "ScriptedPolicy": "scripted",
    "Simulator": "simulators",
    "SimulatorEnv": "simulators",
    "SimulatorStep": "simulators",
    "SwingUpController": "simulators",
    "TaskSet": "tasks",
    "TaskSpec": "tasks",
    "WorldModelWrapper": "world_model",
    "compatibility_shim": "simulators",
    "get_task_set": "tasks",
    "get_task_spec": "tasks",
    "make_gym_env": "gymnasium_env",
    "make_task_env": "multitask",
    "make_task_envs": "multitask",
    "raw_reward": "multitask",
    "restore_state": "multitask",
}

__all__ = [
    "MT30",
    "MT80",
    "AnalyticEnv",
    "DFlexEnv",
    "DFlexWrapper",
    "ImaginedEnv",
    "IsaacGymEnv",
    "NewtonEnv",
    "RewarpedEnv",
    "ScriptedPolicy",
    "Simulator",
    "SimulatorEnv",
    "SimulatorStep",
    "SwingUpController",
    "TaskSet",
    "TaskSpec",
    "WorldModelWrapper",
    "compatibility_shim",
    "get_task_set",
    "get_task_spec",
    "make_gym_env",
    "make_task_env",
    "make_task_envs",
    "raw_reward",
    "restore_state",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
