"""Tasks of our own on the Newton physics engine, as batched TorchRL envs."""

from __future__ import annotations

import importlib.util

import torch

from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.torchrl_private import classproperty
from torchrl_pwm.envs.simulators._workers import check_task
from torchrl_pwm.envs.simulators.base import RewardTiming
from torchrl_pwm.envs.simulators.env import NonFinite, SimulatorEnv

__all__ = ["NewtonEnv"]

_GROUNDLESS = ("cartpole", "double_pendulum")
_NAMES = (*_GROUNDLESS, "ant", "hopper", "humanoid")


class NewtonEnv(SimulatorEnv):
    """A differentiable robot in the Newton physics engine, as a batched TorchRL env.

    | task | observation | action | solver steps in one step | episode | ends early |
    |---|---|---|---|---|---|
    | ``"cartpole"`` | 5 | 1 | 4 | 240 | no |
    | ``"double_pendulum"`` | 6 | 1 | 4 | 240 | no |
    | ``"ant"`` | 37 | 8 | 8 | 1000 | height below 0.27 m |
    | ``"hopper"`` | 11 | 3 | 8 | 1000 | hip 0.4 m below standing |
    | ``"humanoid"`` | 76 | 21 | 8 | 1000 | height below 0.74 m, of 1.26 m |

    A step is 1/60 s. Observations, rewards, start noise, lengths and ends are those of the DFlex tasks that PWM and
    SHAC were run on (arXiv 2407.02466, arXiv 2204.07137), except that a reward is by default that of the state
    *reached*; see ``reward_timing``. The robots are our own, described in
    :mod:`torchrl_pwm.envs.simulators.newton.models`, so returns are not comparable with published ones. The first two
    tasks have the parameters of :class:`AnalyticEnv`'s ``"cartpole_swingup"`` and ``"double_pendulum"``.

    Keys, resets and :meth:`truncate_graph` are those of :class:`SimulatorEnv`. Actions beyond [-1, 1] act as the bound
    and have zero gradient: squash them in the policy. Everything is float32. Gradients agree with finite differences
    of the simulation; feet meet the ground in a continuous penalty force, so they stay right in contact. Newton
    describes the robots. Their equations of motion are those of its Featherstone solver, in kernels of our own, whose
    gradients are right over many steps and in contact, where the solver's of Newton 1.8 are not, and which are faster.
    Memory grows with the length of the window by the joint state at every solver step.

    Kernels are compiled at the first use on a machine, in about ten seconds, and kept in Warp's cache.
    On a GPU a step is a captured CUDA graph; this was written for GPUs but has run on CPUs only. Warp needs one thread
    per env: do not step it from several threads at once.

    Args:
        task (str): one of the table; ``NewtonEnv.available_envs`` is empty where Newton is not installed.
        num_envs (int): number N of parallel envs.

    Keyword Args:
        requires_grad (bool): whether gradients flow through steps.
        device (device, optional): a CPU or a CUDA device. Default: torch's default device.
        seed (int): of the env's own generator, from which all starts are drawn.
        episode_length (int, optional): instead of the task's own.
        stochastic_init (bool): whether starts are drawn (default) or are all the same.
        early_termination (bool): whether an env ends where its task terminates it (default) or always goes on.
        reward_timing (str): ``"after"`` (default) rewards the state that the step reaches, R(s', a); ``"before"`` the
            state it leaves, R(s, a), as PWM's fork of DFlex does.
        substeps (int, optional): solver steps in one step, instead of the task's own.
        ground_stiffness (float, optional): of contacts with the ground [N/m], instead of the robot's own 20,000.
            Stiffer contacts change forces faster, and first-order gradients with them; ten times as much and more
            asks for more ``substeps``.
        non_finite (str), stagger (bool): see :class:`SimulatorEnv`.

    Raises:
        ImportError: if Newton is not installed, or rewarped is, which needs another Warp.
        ValueError: for an unknown task or an option out of range.

    Examples:
        >>> from torchrl_pwm.envs.simulators import NewtonEnv
        >>> from tensordict.nn import TensorDictModule
        >>> from torch import nn
        >>> env = NewtonEnv("cartpole", num_envs=4, requires_grad=True, device="cpu")
        >>> actor = TensorDictModule(nn.Sequential(nn.Linear(5, 1), nn.Tanh()), ["observation"], ["action"])
        >>> rollout = env.rollout(16, actor, break_when_any_done=False)
        >>> rollout["next", "reward"].mean().backward()  # the gradient went through the physics
        >>> bool(actor.module[0].weight.grad.isfinite().all())
        True
    """

    git_url = "https://github.com/newton-physics/newton"
    libname = "newton"

    @classproperty
    def available_envs(cls) -> tuple[str, ...]:
        """Tasks that can be built here: none without Newton."""
        return _NAMES if importlib.util.find_spec("newton") is not None else ()

    def __init__(
        self,
        task: str,
        num_envs: int,
        *,
        requires_grad: bool = False,
        device: torch.device | str | int | None = None,
        seed: int = 0,
        episode_length: int | None = None,
        stochastic_init: bool = True,
        early_termination: bool = True,
        reward_timing: RewardTiming = "after",
        substeps: int | None = None,
        ground_stiffness: float | None = None,
        non_finite: NonFinite = "raise",
        stagger: bool = False,
    ) -> None:
        check_task(task, _NAMES)
        if ground_stiffness is not None and task in _GROUNDLESS:
            raise ValueError(f"nothing of {task} touches the ground: leave out ground_stiffness={ground_stiffness}")
        _check_newton()
        from torchrl_pwm.envs.simulators.newton.tasks import TASKS

        given = {"substeps": substeps, "ground_stiffness": ground_stiffness}
        simulator = TASKS[task](
            num_envs,
            requires_grad=requires_grad,
            device=device,
            seed=seed,
            episode_length=episode_length,
            stochastic_init=stochastic_init,
            early_termination=early_termination,
            reward_timing=reward_timing,
            **{name: value for name, value in given.items() if value is not None},
        )
        super().__init__(simulator, requires_grad=requires_grad, non_finite=non_finite, stagger=stagger)
        self.task = task


def _check_newton() -> None:
    """Raises ImportError where Newton cannot run."""
    if importlib.util.find_spec("rewarped") is not None:
        raise ImportError(
            "NewtonEnv found rewarped in this environment: Newton needs warp-lang 1.17 or later and rewarped 1.5 or "
            'earlier, so the two cannot share one. Make another and pip install "torchrl-pwm[newton]" there',
            name="newton",
        )
    for module in ("warp", "newton"):
        require(module, extra="newton", purpose="NewtonEnv")
