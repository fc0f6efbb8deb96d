"""Small analytic tasks: no simulator to install, exact gradients, any dtype and device."""

from __future__ import annotations

from typing import Any

import torch

from torchrl_pwm.envs.simulators._analytic import AnalyticSimulator
from torchrl_pwm.envs.simulators._workers import check_task
from torchrl_pwm.envs.simulators.base import RewardTiming
from torchrl_pwm.envs.simulators.env import NonFinite, SimulatorEnv
from torchrl_pwm.envs.simulators.pendulums import CartPoleSwingUp, DoublePendulum
from torchrl_pwm.envs.simulators.synthetic import Synthetic

__all__ = ["AnalyticEnv"]

_TASKS: dict[str, type[AnalyticSimulator]] = {
    "double_pendulum": DoublePendulum,
    "cartpole_swingup": CartPoleSwingUp,
    "synthetic": Synthetic,
}


class AnalyticEnv(SimulatorEnv):
    """A differentiable analytic task, as a batched TorchRL env.

    | task | observation | action | episode | ends early |
    |---|---|---|---|---|
    | ``"double_pendulum"`` | 6 | 1 | 240 steps, 4 s | no |
    | ``"cartpole_swingup"`` | 5 | 1 | 240 steps, 4 s | no |
    | ``"synthetic"`` | 53, or any | 152, or any | 240 steps | yes |

    The first two have observations, rewards, start noise and length of the DFlex tasks of these names (PWM, arXiv
    2407.02466), except that a reward is by default that of the state *reached*, so that the last action of a window has
    a gradient; see ``reward_timing``. Their equations and parameters are in
    :mod:`torchrl_pwm.envs.simulators.pendulums`, the third task's in :mod:`torchrl_pwm.envs.simulators.synthetic`.
    Keys, resets and :meth:`truncate_graph` are those of :class:`SimulatorEnv`. Actions beyond [-1, 1] act as the bound
    and have zero gradient: squash them in the policy.

    Args:
        task (str): one of ``AnalyticEnv.available_envs``.
        num_envs (int): number N of parallel envs.

    Keyword Args:
        dtype (dtype): of observations, actions and rewards.
        requires_grad (bool): whether gradients flow through steps.
        device (device, optional): default: torch's default device.
        seed (int): of the env's own generator, from which all starts are drawn.
        episode_length (int, optional): instead of 240.
        stochastic_init (bool): whether starts are drawn (default) or are all the same: hanging at rest.
        early_termination (bool): whether an env ends where its task terminates it (default) or always goes on.
        reward_timing (str): ``"after"`` (default) rewards the state that the step reaches, R(s', a); ``"before"`` the
            state it leaves, R(s, a), as PWM's fork of DFlex does.
        non_finite (str), stagger (bool): see :class:`SimulatorEnv`.
        options: of one task: ``substeps`` (int, default 2), Runge-Kutta steps in one step of the first two, and
            their ``start``, ``start_angle`` and ``start_rate``, see
            :class:`~torchrl_pwm.envs.simulators.pendulums.Mechanism`;
            ``observation_size`` and ``action_size`` (int) of ``"synthetic"``.

    Raises:
        ValueError: for an unknown task or an option out of range.
        TypeError: for an option that the task does not have.

    Examples:
        >>> env = AnalyticEnv("cartpole_swingup", num_envs=3, seed=1)
        >>> rollout = env.rollout(240)
        >>> rollout["next", "reward"].shape, bool(rollout["next", "truncated"][:, -1].all())
        (torch.Size([3, 240, 1]), True)
    """

    available_envs = tuple(_TASKS)

    def __init__(
        self,
        task: str,
        num_envs: int,
        *,
        dtype: torch.dtype = torch.float32,
        requires_grad: bool = False,
        device: torch.device | str | int | None = None,
        seed: int = 0,
        episode_length: int | None = None,
        stochastic_init: bool = True,
        early_termination: bool = True,
        reward_timing: RewardTiming = "after",
        non_finite: NonFinite = "raise",
        stagger: bool = False,
        **options: Any,
    ) -> None:
        check_task(task, _TASKS)
        simulator = _TASKS[task](
            num_envs,
            dtype=dtype,
            device=device,
            seed=seed,
            episode_length=episode_length,
            stochastic_init=stochastic_init,
            early_termination=early_termination,
            reward_timing=reward_timing,
            **options,
        )
        super().__init__(simulator, requires_grad=requires_grad, non_finite=non_finite, stagger=stagger)
        self.task = task
