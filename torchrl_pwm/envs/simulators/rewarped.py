"""Tasks of rewarped, on Warp, as batched TorchRL envs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.torchrl_private import classproperty
from torchrl_pwm.envs.simulators._diffrl import DiffRLSimulator, build_env
from torchrl_pwm.envs.simulators._workers import check_task
from torchrl_pwm.envs.simulators.base import SimulatorStep
from torchrl_pwm.envs.simulators.env import NonFinite, SimulatorEnv
from torchrl_pwm.envs.simulators.shims import compatibility_shim

__all__ = ["RewarpedEnv"]

_has_rewarped = importlib.util.find_spec("rewarped") is not None
_has_newton = importlib.util.find_spec("newton") is not None

TASKS = {"cartpole": "Cartpole", "ant": "Ant", "humanoid": "Humanoid"}

#: Tasks of rewarped 1.3.3 that cannot be used, and why.
_REFUSED = {
    "hopper": "it declares 11 observations and returns 12, while its reward and its end still read the 11 by position: "
    "what they take for the height is the position along the track",
    "anymal": "its methods are not implemented",
    "a1": "its methods are not implemented",
}


class RewarpedSimulator(DiffRLSimulator):
    """A rewarped env, which builds itself at its first reset."""

    library = "rewarped"
    flags = ("terminated", "truncated")
    reset_cuts_all = True

    def reset(self, rows: Tensor) -> Tensor:
        if not self.env.early_termination and not rows.all():
            raise ValueError(
                f"{type(self.env).__name__} of rewarped, without early termination, resets all envs or none, found "
                f'{int(rows.sum())} of {self.num_envs}: reset the whole env, and leave non_finite="raise"'
            )
        return super().reset(rows)

    def step(self, actions: Tensor) -> SimulatorStep:
        step = super().step(actions)
        # Without early termination, rewarped sets this flag wherever an episode is truncated.
        return step if self.env.early_termination else step._replace(terminated=torch.zeros_like(step.terminated))


class RewarpedEnv(SimulatorEnv):
    """A task of rewarped 1.3.3 (Xing et al., ICLR 2025, arXiv 2412.12089) by name.

    | task | observation | action | episode |
    |---|---|---|---|
    | ``"cartpole"`` | 5 | 1 | 240 |
    | ``"ant"`` | 37 | 8 | 1000 |
    | ``"humanoid"`` | 76 | 21 | 1000 |

    Keys, resets and :meth:`truncate_graph` are those of :class:`SimulatorEnv`, with one exception: the reset of one env
    cuts the physics' graph of *every* env (``env.simulator.reset_cuts_all``). In a window that crosses a reset, later
    rewards of all envs then reach earlier actions only through the observations that the policy was given: the
    gradient is that of shorter windows. With ``early_termination=False`` envs end together, at the episode's length,
    and only windows across that are cut.

    The rewards are those of DFlex's tasks, but of the state that is reached; the physics differs. Gradients agree with
    finite differences without contact, and are wrong by tens of percent with feet on the ground; the humanoid's can be
    NaN. The tasks hopper, anymal and a1 of rewarped 1.3.3 do not work, and are refused with the reason.

    It needs Python below 3.12 and a Warp that has ``warp.sim`` (1.3.3 to 1.5), so it cannot share an environment with
    Newton. Its kernels compile at the first use on a machine, in some three minutes.

    Args:
        task (str): one of the table; ``RewarpedEnv.available_envs`` is empty where rewarped is not installed.
        num_envs (int): number N of parallel envs.

    Keyword Args:
        requires_grad (bool): whether gradients flow through steps.
        device (device, optional): default: torch's default device.
        seed (int): of the env's own generator. rewarped draws from torch's global generator, which is left alone.
        non_finite (str), stagger (bool): see :class:`SimulatorEnv`; envs that end together cannot be staggered.
        shim (bool): import and build within :func:`compatibility_shim`. Default: ``False``.
        num_workers (int): see :class:`SimulatorEnv`.
        options: of the rewarped env.

    Raises:
        ImportError: if rewarped is not installed, Newton is, or the installed Warp has no ``warp.sim``.
        ValueError: for an unknown task, a task that does not work, ``num_envs`` below 1, or ``stagger`` where all envs
            end together.

    Examples:
        >>> from torchrl_pwm.envs.simulators import RewarpedEnv
        >>> env = RewarpedEnv("cartpole", num_envs=2, device="cpu", shim=True)
        Warp ...
    """

    git_url = "https://github.com/rewarped/rewarped"
    libname = "rewarped"

    @classproperty
    def available_envs(cls) -> tuple[str, ...]:
        """Tasks that can be built here: none without rewarped."""
        return tuple(TASKS) if _has_rewarped else ()

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
        if task in _REFUSED:
            raise ValueError(
                f"{task!r} of rewarped 1.3.3 does not work: {_REFUSED[task]}; expected one of "
                f"{', '.join(map(repr, TASKS))}"
            )
        check_task(task, TASKS)
        _check_installed()
        with compatibility_shim() if shim else nullcontext():
            purpose = "RewarpedEnv (built with shim=True if numpy and gymnasium are current)"
            module = require(f"rewarped.envs.dflex.{task}", extra="rewarped", purpose=purpose)
            kind = getattr(module, TASKS[task])
            env = build_env(kind, num_envs, device=device, seed=seed, no_grad=not requires_grad, **options)
        if stagger and not env.early_termination:
            raise ValueError(
                f"{TASKS[task]} of rewarped, without early termination, resets all envs or none: expected "
                "stagger=False, found True"
            )
        simulator = RewarpedSimulator(env, seed=seed)
        super().__init__(simulator, requires_grad=requires_grad, non_finite=non_finite, stagger=stagger)
        self.task = task

    @property
    def lib(self) -> Any:
        """The module ``rewarped``."""
        return importlib.import_module("rewarped")


def _check_installed() -> None:
    """Raises ImportError where rewarped cannot run: not installed, or beside a Warp for Newton."""
    if not _has_rewarped:
        older = " and with Python 3.10 or 3.11, as a package that it builds on has no later wheel"
        raise ImportError(
            'RewarpedEnv needs rewarped, which is not installed; pip install "torchrl-pwm[rewarped]", in an '
            f"environment without Newton{older if sys.version_info >= (3, 12) else ''}",
            name="rewarped",
        )
    separate = "Newton needs warp-lang 1.17 or later and rewarped 1.5 or earlier, so the two cannot share one. Make "
    separate += 'another and pip install "torchrl-pwm[rewarped]" there'
    if _has_newton:
        raise ImportError(f"RewarpedEnv found newton in this environment: {separate}", name="rewarped")
    warp = require("warp", extra="rewarped", purpose="RewarpedEnv")
    try:
        installed = importlib.util.find_spec("warp.sim") is not None
    except ImportError:
        installed = False
    if not installed:
        raise ImportError(
            f"rewarped needs warp-lang 1.3.3 to 1.5, found {getattr(warp, '__version__', 'another')}, which has no "
            f"warp.sim. {separate}",
            name="warp",
        )
