"""Isaac Gym tasks, for PWM without gradients of the simulator."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torchrl.envs.libs.isaacgym import IsaacGymEnv as _TorchRLIsaacGymEnv

__all__ = ["IsaacGymEnv"]


class IsaacGymEnv(_TorchRLIsaacGymEnv):
    """TorchRL's Isaac Gym env with the arguments of the other simulators.

    PWM learns its world model from such an env and takes its gradients from the model; SHAC, which needs those of the
    simulator, cannot use it. Isaac Gym runs on NVIDIA GPUs only, and NVIDIA's last release is built for
    Python 3.8, so that it needs bindings built for the Python of this package. This class has not been run.

    Args:
        task (str): a task of IsaacGymEnvs such as ``"Ant"``.
        num_envs (int): number of rows N.

    Keyword Args:
        requires_grad (bool): must be False.
        device (device): a CUDA device. Default: ``"cuda:0"``.
        seed (int): given to IsaacGymEnvs.
        options: of ``isaacgymenvs.make``.

    Raises:
        ImportError: if isaacgym or isaacgymenvs is not installed, with the steps to install them.
        ValueError: if gradients are asked for, or ``num_envs`` is below 1.

    Examples:
        >>> from torchrl_pwm.envs.simulators import IsaacGymEnv
        >>> env = IsaacGymEnv("Ant", num_envs=64)
        >>> env.batch_size
        torch.Size([64])
    """

    def __init__(
        self,
        task: str,
        num_envs: int,
        *,
        requires_grad: bool = False,
        device: torch.device | str = "cuda:0",
        seed: int = 0,
        **options: Any,
    ) -> None:
        if requires_grad:
            raise ValueError(
                "Isaac Gym has no gradients: expected requires_grad=False. PWM needs none of the simulator; for SHAC "
                "take AnalyticEnv, DFlexEnv or another differentiable simulator"
            )
        if num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, found {num_envs!r}")
        for module in ("isaacgym", "isaacgymenvs"):
            if importlib.util.find_spec(module) is None:
                raise ImportError(
                    f"IsaacGymEnv needs {module}, which is not installed: get Isaac Gym Preview 4 from "
                    "https://developer.nvidia.com/isaac-gym, with bindings for this Python, then "
                    'pip install "git+https://github.com/isaac-sim/IsaacGymEnvs"',
                    name=module,
                )
        super().__init__(task, num_envs=num_envs, device=device, seed=seed, **options)
