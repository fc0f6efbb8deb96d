"""PWM's fork of DFlex, installed by the user, as batched TorchRL envs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

from torchrl_pwm._utils.torchrl_private import classproperty
from torchrl_pwm.envs.simulators._compiled import import_compiled
from torchrl_pwm.envs.simulators._dflex_graph import GuardedIntegrator
from torchrl_pwm.envs.simulators._diffrl import DiffRLSimulator, build_env
from torchrl_pwm.envs.simulators._workers import check_task
from torchrl_pwm.envs.simulators.base import RewardTiming
from torchrl_pwm.envs.simulators.env import NonFinite, SimulatorEnv
from torchrl_pwm.envs.simulators.shims import compatibility_shim

__all__ = ["DFlexEnv", "DFlexWrapper"]

_has_dflex = importlib.util.find_spec("dflex") is not None


class _Task(NamedTuple):
    module: str
    name: str
    options: dict[str, Any]


_LOCOMOTION = {"episode_length": 1000, "early_termination": True, "up_rew_scale": 0.1, "MM_caching_frequency": 16}
_PENDULUM = {"episode_length": 240, "MM_caching_frequency": 8}
_HOPPER = {
    "episode_length": 1000,
    "MM_caching_frequency": 16,
    "early_termination": True,
    "termination_height": -0.45,
    "termination_angle": 0.524,
    "termination_height_tolerance": 0.15,
    "termination_angle_tolerance": 0.05,
    "height_rew_scale": 1.0,
    "angle_rew_scale": 1.0,
    "action_penalty": -0.1,
}
_ANT = {**_LOCOMOTION, "termination_height": 0.27, "action_penalty": 0.0, "joint_vel_obs_scaling": 0.1}
_ANYMAL = {
    **_LOCOMOTION,
    "nan_state_fix": True,
    "termination_height": 0.25,
    "action_penalty": -0.005,
    "heading_rew_scale": 1.0,
    "heigh_rew_scale": 1.0,  # the name in DFlex
}
_HUMANOID = {
    **_LOCOMOTION,
    "nan_state_fix": True,
    "MM_caching_frequency": 48,
    "termination_height": 0.74,
    "termination_tolerance": 0.1,
    "height_rew_scale": 10.0,
    "heading_rew_scale": 1.0,
    "action_penalty": -0.002,
    "joint_vel_obs_scaling": 0.1,
}
_SNU_HUMANOID = {
    **_HUMANOID,
    "MM_caching_frequency": 8,
    "termination_height": 0.46,
    "termination_tolerance": 0.05,
    "height_rew_scale": 4.0,
    "action_penalty": -0.001,
}

#: Class and settings of each task in the published runs of PWM.
TASKS = {
    "cartpole_swingup": _Task("dflex.envs", "CartPoleSwingUpEnv", _PENDULUM),
    "double_pendulum": _Task("dflex.envs.double_pendulum", "DoublePendulumEnv", _PENDULUM),
    "hopper": _Task("dflex.envs", "HopperEnv", _HOPPER),
    "ant": _Task("dflex.envs", "AntEnv", _ANT),
    "anymal": _Task("dflex.envs", "AnymalEnv", _ANYMAL),
    "humanoid": _Task("dflex.envs", "HumanoidEnv", _HUMANOID),
    "snu_humanoid": _Task("dflex.envs", "SNUHumanoidEnv", _SNU_HUMANOID),
}

_INSTALL = (
    'pip install "git+https://github.com/imgeorgiev/DiffRL.git/#subdirectory=dflex" (for research and evaluation only: '
    "read its licence). It needs a C++ compiler and ninja, compiles at its first import into its own folder, and "
    "imports with current numpy, gymnasium and Python with shim=True, or inside "
    "torchrl_pwm.envs.simulators.compatibility_shim()"
)


class DFlexSimulator(DiffRLSimulator):
    """A DFlex env.

    DFlex keeps one switch for gradients, which the env built last has set for all. For the time of each call it is set
    as this env was built; torch's own grad mode does the rest.
    """

    library = "DFlex"
    needs = (*DiffRLSimulator.needs, "integrator")
    flags = ("termination", "truncation")

    def __init__(self, env: Any, *, seed: int = 0) -> None:
        super().__init__(env, seed=seed)
        self._integrator = GuardedIntegrator(env.integrator)

    @contextmanager
    def running(self) -> Iterator[None]:
        config = _dflex().config
        before, config.no_grad = config.no_grad, self.env.no_grad
        integrator, self.env.integrator = self.env.integrator, self._integrator
        try:
            with super().running():
                yield
        finally:
            config.no_grad = before
            self.env.integrator = integrator

    def cut(self) -> None:
        super().cut()
        self._integrator.cut()


class DFlexWrapper(SimulatorEnv):
    """A DFlex env, already built, as a batched TorchRL env.

    DFlex is the simulator of the published SHAC and PWM runs, in PWM's fork; this package holds none of its code.
    Keys, resets and :meth:`truncate_graph` are those of :class:`SimulatorEnv`. A reward belongs to the state that a
    step *leaves*, r_t = R(s_t, a_t): the last action of a window has a gradient through the terminal value and, in
    tasks that penalise actions (hopper, anymal and both humanoids), through its own penalty, and no other.
    Envs with and without gradients may live side by side, though DFlex has one switch for both; not in two threads.
    Both observe the same: where ant, anymal and humanoid have their last action, DFlex gives it without gradients and
    zeros with them, and this env gives zeros, as the published runs had.

    A window can have one backward pass: DFlex empties its tapes in it, and would give zeros in a second, which raises
    here. DFlex also holds the memory of every step that no backward pass went through, such as the last of a window
    whose terminal value is not in the loss. :meth:`truncate_graph`, or a full reset, frees those of the window before
    the one that it ends: a window's backward pass must come before the end of the next. What is never cut is never
    freed: evaluate under ``torch.no_grad()``, or in an env without gradients.

    Args:
        env: an env of ``dflex.envs``.

    Keyword Args:
        requires_grad (bool, optional): whether gradients flow through steps. Default: as the env was built.
        seed (int): of the env's own generator. DFlex draws from torch's global generator, which is left alone.
        non_finite (str): see :class:`SimulatorEnv`. DFlex's own ``nan_state_fix`` comes first.
        stagger (bool): see :class:`SimulatorEnv`.
        reward_timing (str): what :attr:`reward_timing` says; ``"after"`` describes the original DiffRL.

    Raises:
        ImportError: if DFlex is not installed or cannot be compiled, with the steps to install it.
        TypeError: if ``env`` is not a DFlex env.
        ValueError: if gradients are asked of an env built with ``no_grad=True``.

    Examples:
        >>> from torchrl_pwm.envs.simulators import DFlexWrapper, compatibility_shim
        >>> with compatibility_shim():
        ...     from dflex.envs import AntEnv
        ...     env = DFlexWrapper(AntEnv(num_envs=2, no_grad=False, device="cpu"))
        >>> env.rollout(2)["observation"].shape
        torch.Size([2, 2, 37])
    """

    git_url = "https://github.com/imgeorgiev/DiffRL"
    libname = "dflex"

    def __init__(
        self,
        env: Any,
        *,
        requires_grad: bool | None = None,
        seed: int = 0,
        non_finite: NonFinite = "raise",
        stagger: bool = False,
        reward_timing: RewardTiming = "before",
    ) -> None:
        _dflex()
        simulator = DFlexSimulator(env, seed=seed)
        if requires_grad and env.no_grad:
            raise ValueError("requires_grad=True needs a DFlex env built with no_grad=False, found no_grad=True")
        simulator.reward_timing = reward_timing
        requires_grad = not env.no_grad if requires_grad is None else requires_grad
        super().__init__(simulator, requires_grad=requires_grad, non_finite=non_finite, stagger=stagger)

    @property
    def lib(self) -> Any:
        """The module ``dflex``."""
        return _dflex()


class DFlexEnv(DFlexWrapper):
    """A task of DFlex by name, with the settings of the published runs of PWM (arXiv 2407.02466).

    | task | observation | action | episode | envs in the paper |
    |---|---|---|---|---|
    | ``"cartpole_swingup"`` | 5 | 1 | 240 | 1024 |
    | ``"double_pendulum"`` | 6 | 1 | 240 | 1024 |
    | ``"hopper"`` | 11 | 3 | 1000 | 64 |
    | ``"ant"`` | 37 | 8 | 1000 | 128 |
    | ``"anymal"`` | 49 | 12 | 1000 | 64 |
    | ``"humanoid"`` | 76 | 21 | 1000 | 64 |
    | ``"snu_humanoid"`` | 53 | 152 | 1000 | 64 |

    Steps last 1/60 s. See :class:`DFlexWrapper` for what all have in common.

    Args:
        task (str): one of the table; ``DFlexEnv.available_envs`` is empty where DFlex is not installed.
        num_envs (int): number N of parallel envs.

    Keyword Args:
        requires_grad (bool): whether gradients flow through steps.
        device (device, optional): default: torch's default device.
        seed (int): of the env's own generator.
        non_finite (str), stagger (bool): see :class:`SimulatorEnv`.
        shim (bool): import and build within :func:`compatibility_shim`. Default: ``False``.
        num_workers (int): see :class:`SimulatorEnv`.
        options: of the DFlex env, instead of the published settings.

    Raises:
        ImportError: if DFlex is not installed or cannot be compiled, with the steps to install it.
        ValueError: for an unknown task or ``num_envs`` below 1.

    Examples:
        >>> from torchrl_pwm.envs.simulators import DFlexEnv
        >>> env = DFlexEnv("ant", num_envs=2, requires_grad=True, device="cpu", shim=True)
        >>> env.rollout(2)["observation"].shape
        torch.Size([2, 2, 37])
    """

    @classproperty
    def available_envs(cls) -> tuple[str, ...]:
        """Tasks that can be built here: none without DFlex."""
        return tuple(TASKS) if _has_dflex else ()

    def __init__(
        self,
        task: str,
        num_envs: int,
        *,
        requires_grad: bool = False,
        device: torch.device | str | int | None = None,
        seed: int = 0,
        non_finite: NonFinite = "raise",
        stagger: bool = False,
        shim: bool = False,
        **options: Any,
    ) -> None:
        check_task(task, TASKS)
        _check_installed()
        module, name, published = TASKS[task]
        settings = {"stochastic_init": True, "render": False, **published, **options}
        with compatibility_shim() if shim else nullcontext():
            config = _dflex().config
            before = config.no_grad
            try:
                kind = getattr(import_compiled(module, library="DFlex", install=_INSTALL), name)
                env = build_env(kind, num_envs, device=device, seed=seed, no_grad=not requires_grad, **settings)
            finally:
                config.no_grad = before
        super().__init__(env, requires_grad=requires_grad, seed=seed, non_finite=non_finite, stagger=stagger)
        self.task = task


def _check_installed() -> None:
    if not _has_dflex:
        raise ImportError(f"DFlex is not installed; {_INSTALL}", name="dflex")


def _dflex() -> Any:
    _check_installed()
    return import_compiled("dflex", library="DFlex", install=_INSTALL)
