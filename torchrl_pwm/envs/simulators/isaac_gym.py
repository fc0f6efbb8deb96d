"""Isaac Gym tasks, for PWM without gradients of the simulator."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite
from torchrl.envs.libs.isaacgym import IsaacGymWrapper

from torchrl_pwm._utils.torchrl_private import classproperty
from torchrl_pwm.envs.simulators._compiled import import_compiled
from torchrl_pwm.envs.simulators._workers import check_task

if TYPE_CHECKING:
    from isaacgym import gymapi

__all__ = ["IsaacGymEnv"]

_has_isaacgym = importlib.util.find_spec("isaacgym") is not None
_has_isaacgymenvs = importlib.util.find_spec("isaacgymenvs") is not None

_INSTALL = (
    "get Isaac Gym Preview 4 from https://developer.nvidia.com/isaac-gym, with bindings for this Python, then "
    'pip install "git+https://github.com/isaac-sim/IsaacGymEnvs"'
)


class IsaacGymEnv(IsaacGymWrapper):
    """A task of IsaacGymEnvs through TorchRL's Isaac Gym wrapper, with the arguments of the other simulators.

    PWM learns its world model from such an env and takes its gradients from the model; SHAC, which needs those of the
    simulator, cannot use it. Isaac Gym runs on NVIDIA GPUs only, and NVIDIA's last release is built for Python 3.8, so
    that it needs bindings built for the Python of this package. This class has run on a stand-in only.

    Keys, all with batch [N]: reads ``action`` [N, A]; writes ``obs`` [N, O], ``reward``, ``done``, ``terminated`` and
    ``truncated`` [N, 1]. ``RenameTransform(["obs"], ["observation"])`` gives the key that this package's losses read.
    Isaac Gym resets an env within the *next* step: the observation after the reset of some envs is their terminal
    one, and the first transition of an episode leads from there to its start. Leave that one out of a world model's
    data. A full reset takes that step, without action, at once. A process can hold one such env.

    Args:
        task (str): one of ``IsaacGymEnv.available_envs``, which is empty where Isaac Gym is not installed.
        num_envs (int): number N of parallel envs.

    Keyword Args:
        requires_grad (bool): must be False.
        device (device): of simulation and tensors. Default: ``"cuda:0"``.
        seed (int): given to IsaacGymEnvs as the env is built; ``set_seed`` does nothing.
        headless (bool): whether to open no window.
        stagger (bool): must be False.
        options: of ``isaacgymenvs.make``.

    Raises:
        ImportError: if isaacgym or isaacgymenvs is not installed or cannot be compiled, with the steps to install them.
        ValueError: if gradients or staggered episodes are asked for, ``num_envs`` is below 1, or the task is unknown.

    Examples:
        >>> from torchrl_pwm.envs.simulators import IsaacGymEnv
        >>> env = IsaacGymEnv("Ant", num_envs=64)
        >>> env.batch_size
        torch.Size([64])
    """

    git_url = "https://github.com/isaac-sim/IsaacGymEnvs"
    libname = "isaacgymenvs"

    @classproperty
    def available_envs(cls) -> tuple[str, ...]:
        """Tasks that can be built here: none without Isaac Gym."""
        return tuple(_tasks()) if _has_isaacgym and _has_isaacgymenvs else ()

    def __init__(
        self,
        task: str,
        num_envs: int,
        *,
        requires_grad: bool = False,
        device: torch.device | str = "cuda:0",
        seed: int = 0,
        headless: bool = True,
        stagger: bool = False,
        **options: Any,
    ) -> None:
        if requires_grad:
            raise ValueError(
                "Isaac Gym has no gradients: expected requires_grad=False. PWM needs none of the simulator; for SHAC "
                "take AnalyticEnv, NewtonEnv or another differentiable simulator"
            )
        if stagger:
            raise ValueError("Isaac Gym itself counts the steps of an episode: expected stagger=False, found True")
        if num_envs < 1:
            raise ValueError(f"num_envs must be an integer of at least 1, found {num_envs!r}")
        for module, installed in (("isaacgym", _has_isaacgym), ("isaacgymenvs", _has_isaacgymenvs)):
            if not installed:
                raise ImportError(f"IsaacGymEnv needs {module}, which is not installed: {_INSTALL}", name=module)
        check_task(task, _tasks())
        # What TorchRL's metaclass of gym envs adds, for its own wrappers.
        options = {name: value for name, value in options.items() if not name.startswith("_torchrl")}
        place = {"sim_device": str(device), "rl_device": str(device), "headless": headless}
        env = self.lib.make(seed=seed, task=task, num_envs=num_envs, **place, **options)
        # TorchRL asks every env for these two; those of IsaacGymEnvs are no gym.Env and may lack them.
        env.__name__ = task
        if not hasattr(env, "unwrapped"):
            env.unwrapped = env
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IsaacGym environment support")
            super().__init__(env)
        self.task = task

    @property
    def lib(self) -> Any:
        """The module ``isaacgymenvs``."""
        _import("isaacgym")  # first: it refuses to be imported after torch's CUDA has started
        return _import("isaacgymenvs")

    @property
    def gym(self) -> gymapi.Gym:
        """Isaac Gym's own interface, for what this env does not offer: ``env.gym.get_sim_time(env.sim)``."""
        return self._env.gym

    @property
    def sim(self) -> gymapi.Sim:
        """The simulation that :attr:`gym` takes as its first argument."""
        return self._env.sim

    def _make_specs(self, env: Any) -> None:
        super()._make_specs(env)
        # TorchRL's wrapper has flags [N] beside rewards [N, 1].
        flags = {key: spec.unsqueeze(-1) for key, spec in self.output_spec["full_done_spec"].items(True, True)}
        self.full_done_spec = Composite(flags, shape=self.batch_size)
        self._flags_have_column = True

    def read_done(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, bool]:
        *flags, any_done = super().read_done(*args, **kwargs)
        if getattr(self, "_flags_have_column", False):
            flags = [flag.unsqueeze(-1) for flag in flags]
        return (*flags, any_done)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None or mask.all():
            self._env.reset_buf[:] = 1
            self._env.step(self.action_spec.zero())
        else:
            self._env.reset_buf[mask.reshape(-1)] = 1
        return super()._reset(None, **kwargs)

    def _output_transform(self, output: tuple[Any, Tensor, Tensor, dict[str, Any]]) -> tuple[Any, ...]:
        observation, reward, done, info = output
        done = done.bool()
        truncated = done & info["time_outs"].bool() if "time_outs" in info else torch.zeros_like(done)
        return observation, reward, done & ~truncated, truncated, done, info


def _tasks() -> dict[str, Any]:
    _import("isaacgym")
    tasks: dict[str, Any] = _import("isaacgymenvs.tasks").isaacgym_task_map
    return tasks


def _import(module: str) -> Any:
    return import_compiled(module, library=module, install=f"it needs a C++ compiler and ninja; {_INSTALL}")
