"""Controllers written by hand from the equations of motion: what solving a swing-up task means in numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_pwm.envs.simulators.pendulums import GRAVITY, CartPoleSwingUp, DoublePendulum, Mechanism, wrapped

__all__ = ["SwingUpController"]


class SwingUpController(TensorDictModuleBase):
    """A policy that solves ``"cartpole_swingup"`` or ``"double_pendulum"`` of :class:`AnalyticEnv`.

    Far from upright it brings a pendulum to the energy of standing still upright: the pole through the acceleration of
    the cart (Astrom and Furuta, Automatica 2000), the second rod through the angle of the first, which the motor
    controls by partial feedback linearisation (Spong, IEEE Control Systems 1995). Near upright, where the cost to go of
    a linear-quadratic regulator is small, that regulator takes over.

    Reads ``observation`` [*, O], writes ``action`` [*, 1] within [-1, 1]. It is meant for the tasks' own physical
    parameters.

    Args:
        task (str): ``"cartpole_swingup"`` or ``"double_pendulum"``.

    Raises:
        ValueError: for another task.

    Examples:
        >>> from torchrl_pwm.envs.simulators import AnalyticEnv, SwingUpController
        >>> env = AnalyticEnv("cartpole_swingup", num_envs=8)
        >>> rollout = env.rollout(240, SwingUpController("cartpole_swingup"))
        >>> bool((rollout["next", "reward"][:, -30:] > -0.1).all())  # upright and at rest for the last half second
        True
    """

    tasks = ("cartpole_swingup", "double_pendulum")

    def __init__(self, task: str) -> None:
        super().__init__()
        if task not in self.tasks:
            raise ValueError(f"no controller for task {task!r}; expected one of {', '.join(map(repr, self.tasks))}")
        self.in_keys, self.out_keys = ["observation"], ["action"]
        self.task = task
        self._law = _CartPoleLaw() if task == "cartpole_swingup" else _DoublePendulumLaw()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes the action of ``tensordict``'s observation."""
        observation = tensordict.get("observation")
        action = self._law(observation.reshape(-1, observation.shape[-1]))
        return tensordict.set("action", action.reshape(*observation.shape[:-1], 1))


class _Law(ABC):
    """Swing-up far from the top, linear-quadratic regulator near it; ``state_cost`` and ``action_cost`` are its."""

    state_cost: tuple[float, float, float, float]
    action_cost: float
    #: cost to go below which the regulator takes over.
    capture: float

    def __init__(self, mechanism: Mechanism) -> None:
        self.gain, self.cost_to_go = _regulator(mechanism, self.state_cost, self.action_cost)

    def __call__(self, observation: Tensor) -> Tensor:
        state = self.state(observation)
        upright = torch.cat([self.upright_angles(state), state[:, 2:]], -1)
        gain, cost_to_go = self.gain.to(state), self.cost_to_go.to(state)
        near = ((upright @ cost_to_go) * upright).sum(-1) < self.capture
        action = torch.where(near, -(upright @ gain), self.swing_up(state))
        return action.clamp(-1, 1)[:, None]

    @abstractmethod
    def state(self, observation: Tensor) -> Tensor:
        """Joint positions and rates, [N, 4]."""

    @abstractmethod
    def upright_angles(self, state: Tensor) -> Tensor:
        """Joint positions relative to upright, angles in [-pi, pi), [N, 2]."""

    @abstractmethod
    def swing_up(self, state: Tensor) -> Tensor:
        """The action far from upright, [N], not yet clamped."""


class _CartPoleLaw(_Law):
    state_cost = (0.05, 1.0, 0.1, 0.1)
    action_cost = 0.01
    capture = 64.0

    def __init__(self) -> None:
        self.task = CartPoleSwingUp(1, dtype=torch.float64)
        super().__init__(self.task)

    def state(self, observation: Tensor) -> Tensor:
        position, speed, sin, cos, rate = observation.unbind(-1)
        return torch.stack([position, torch.atan2(sin, cos), speed, rate], -1)

    def upright_angles(self, state: Tensor) -> Tensor:
        return torch.stack([state[:, 0], wrapped(state[:, 1])], -1)

    def swing_up(self, state: Tensor) -> Tensor:
        task = self.task
        position, angle, speed, rate = state.unbind(-1)
        sin, cos = angle.sin(), angle.cos()
        arm = task.pole_length / 2
        moment = task.pole_mass * arm
        inertia = 4 / 3 * moment * arm
        energy = inertia * rate.square() / 2 + moment * GRAVITY * (cos - 1)
        # The energy of the pole changes by -moment * rate * cos times the acceleration of the cart.
        acceleration = (8.0 * energy * rate * cos).clamp(-17.0, 17.0) - 3.0 * position - 2.3 * speed
        pole = (moment * GRAVITY * sin - moment * cos * acceleration) / inertia
        force = (task.cart_mass + task.pole_mass) * acceleration + moment * (cos * pole - sin * rate.square())
        return force / task.max_force


class _DoublePendulumLaw(_Law):
    state_cost = (1.0, 1.0, 0.013, 0.013)
    action_cost = 0.006
    capture = 5700.0

    def __init__(self) -> None:
        self.task = DoublePendulum(1, dtype=torch.float64)
        super().__init__(self.task)

    def state(self, observation: Tensor) -> Tensor:
        cos1, sin1, cos2, sin2, rate1, rate2 = observation.unbind(-1)
        return torch.stack([torch.atan2(sin1, cos1), torch.atan2(sin2, cos2), rate1, rate2], -1)

    def upright_angles(self, state: Tensor) -> Tensor:
        return wrapped(state[:, :2])

    def swing_up(self, state: Tensor) -> Tensor:
        task = self.task
        first, second, rate1, rate2 = state.unbind(-1)
        rate = rate1 + rate2
        energy = task.inertia2 * rate.square() / (2 * task.weight2) + (first + second).cos() - 1
        lean = -0.59 * torch.tanh(11.0 * energy * rate)
        wanted = -30.0 * (wrapped(first) - lean) - 12.0 * rate1
        m11, m12, m22, force1, force2 = task.dynamics(state)
        # The first row of the equations of motion has no motor: it gives the second joint's acceleration.
        other = (force1 - m11 * wanted) / m12
        return (m12 * wanted + m22 * other - force2) / task.max_torque


def _regulator(mechanism: Mechanism, state_cost: tuple[float, ...], action_cost: float) -> tuple[Tensor, Tensor]:
    """Gain [4] and cost-to-go matrix [4, 4] of the discrete linear-quadratic regulator around upright."""
    top, idle = torch.zeros(1, 4, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    with torch.enable_grad():
        jacobians = torch.autograd.functional.jacobian(mechanism.advance, (top, idle))
    a, b = jacobians[0][0, :, 0], jacobians[1][0, :, 0]
    cost = torch.diag(torch.tensor(state_cost, dtype=torch.float64))
    p = cost
    for _ in range(1000):
        gain = (b.mT @ p @ a) / (action_cost + b.mT @ p @ b)
        p = cost + a.mT @ p @ (a - b @ gain)
    return gain[0], p
