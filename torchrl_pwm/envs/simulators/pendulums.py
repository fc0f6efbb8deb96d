"""Cart-pole swing-up and the double pendulum, as analytic equations of motion.

Observation, reward, start noise and the 240 steps of 1/60 s are those of the tasks of DFlex that PWM and SHAC were
run on (arXiv 2407.02466, arXiv 2204.07137); the physical parameters are our own. An angle is zero upright.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from torchrl_pwm.envs.simulators._analytic import AnalyticSimulator

__all__ = ["CartPoleSwingUp", "DoublePendulum"]

GRAVITY = 9.81


class Mechanism(AnalyticSimulator):
    """Two joints q and their rates v, driven by one motor. State [N, 4]: q, v.

    Args:
        num_envs (int): number N of parallel envs.

    Keyword Args:
        substeps (int): steps of the classical Runge-Kutta method in one control step, during which the action is held.
        start (str): where starts are centred, at rest: ``"hanging"``, to be swung up, or ``"upright"``, to be balanced.
        start_angle, start_rate (float): how far positions at a start are from there at most [rad, m], and rates from
            rest [rad/s, m/s].
        options: of :class:`AnalyticSimulator`.

    Raises:
        ValueError: for an option out of range.
    """

    action_size = 1
    state_size = 4
    time_step: ClassVar[float] = 1 / 60
    #: joint positions hanging at rest.
    hanging: ClassVar[tuple[float, float]]

    @abstractmethod
    def acceleration(self, state: Tensor, actions: Tensor) -> Tensor:
        """Second derivatives of q, [N, 2], from the equations of motion."""

    @abstractmethod
    def energy(self, state: Tensor) -> Tensor:
        """Kinetic and potential energy in joules, [N], zero at height zero and rest."""

    def __init__(
        self,
        num_envs: int,
        *,
        substeps: int = 2,
        start: Literal["hanging", "upright"] = "hanging",
        start_angle: float = math.pi / 2,
        start_rate: float = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(num_envs, **options)
        if substeps < 1:
            raise ValueError(f"substeps must be at least 1, found {substeps}")
        if start_angle < 0 or start_rate < 0:
            raise ValueError(f"start_angle and start_rate must be at least 0, found {start_angle} and {start_rate}")
        if start not in ("hanging", "upright"):
            raise ValueError(f'start must be "hanging" or "upright", found {start!r}')
        self.substeps = substeps
        self.start_centre = self.hanging if start == "hanging" else (0.0, 0.0)
        self.start_angle, self.start_rate = start_angle, start_rate

    def start(self) -> Tensor:
        """Positions within ``start_angle`` of the centre, rates within ``start_rate``."""
        centre = self.numbers(*self.start_centre, 0.0, 0.0)
        if not self.stochastic_init:
            return centre.expand(self.num_envs, 4).clone()
        return centre + self.uniform(4) * self.numbers(*[self.start_angle] * 2, *[self.start_rate] * 2)

    def advance(self, state: Tensor, actions: Tensor) -> Tensor:
        def rate(at: Tensor) -> Tensor:
            return torch.cat([at[:, 2:], self.acceleration(at, actions)], -1)

        h = self.time_step / self.substeps
        for _ in range(self.substeps):
            k1 = rate(state)
            k2 = rate(state + h / 2 * k1)
            k3 = rate(state + h / 2 * k2)
            k4 = rate(state + h * k3)
            state = state + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        return state


class CartPoleSwingUp(Mechanism):
    """A pole on a cart, to be swung up and balanced at x = 0 by a force on the cart.

    State x [m], theta [rad] and their rates. Observation [5]: x, x', sin theta, cos theta, theta'. Action [1]: force,
    in units of ``max_force``. Reward: -theta^2 - 0.1 theta'^2 - 0.05 x^2 - 0.1 x'^2, with theta in [-pi, pi). It never
    terminates. There are no rails' ends.
    """

    observation_size = 5
    hanging = (0.0, math.pi)
    cart_mass: ClassVar[float] = 1.0  # kg
    pole_mass: ClassVar[float] = 0.2  # kg, a uniform rod
    pole_length: ClassVar[float] = 1.0  # m
    max_force: ClassVar[float] = 20.0  # N

    def acceleration(self, state: Tensor, actions: Tensor) -> Tensor:
        # (M + m) x'' + m l cos(theta) theta'' = F + m l sin(theta) theta'^2
        # m l cos(theta) x'' + (4/3) m l^2 theta'' = m g l sin(theta),   l half the length of the rod
        _, angle, _, rate = state.unbind(-1)
        force = self.max_force * actions[:, 0]
        arm = self.pole_length / 2
        moment = self.pole_mass * arm
        sin, cos = angle.sin(), angle.cos()
        push = force + moment * sin * rate.square()
        weight = moment * GRAVITY * sin
        total, inertia, coupling = self.cart_mass + self.pole_mass, 4 / 3 * moment * arm, moment * cos
        determinant = total * inertia - coupling.square()
        cart = (inertia * push - coupling * weight) / determinant
        pole = (total * weight - coupling * push) / determinant
        return torch.stack([cart, pole], -1)

    def energy(self, state: Tensor) -> Tensor:
        _, angle, speed, rate = state.unbind(-1)
        arm = self.pole_length / 2
        moment = self.pole_mass * arm
        cart = (self.cart_mass + self.pole_mass) * speed.square() / 2
        pole = moment * angle.cos() * speed * rate + 2 / 3 * moment * arm * rate.square()
        return cart + pole + moment * GRAVITY * angle.cos()

    def observe(self, state: Tensor) -> Tensor:
        position, angle, speed, rate = state.unbind(-1)
        return torch.stack([position, speed, angle.sin(), angle.cos(), rate], -1)

    def reward(self, state: Tensor, actions: Tensor) -> Tensor:
        position, angle, speed, rate = state.unbind(-1)
        swing = wrapped(angle).square() + 0.1 * rate.square()
        return -swing - 0.05 * position.square() - 0.1 * speed.square()


class DoublePendulum(Mechanism):
    """Two rods hanging from a fixed pivot, to be swung up and balanced by a torque at the joint between them.

    State theta1, of the first rod, and theta2, of the second relative to the first [rad], and their rates.
    Observation [6]: cos theta1, sin theta1, cos theta2, sin theta2, theta1', theta2'. Action [1]: torque, in units of
    ``max_torque``. Reward: -theta1^2 - theta2^2 - 0.1 (theta1'^2 + theta2'^2), angles in [-pi, pi). It never
    terminates.
    """

    observation_size = 6
    hanging = (math.pi, 0.0)
    # Both rods pull equally at the pivot (weight1 = weight2), so that spreading them apart lifts both at once, and they
    # are long: the shorter they are, the faster they fall over, and the less a gradient says about what to do.
    masses: ClassVar[tuple[float, float]] = (1.0, 1.0)  # kg, uniform rods
    lengths: ClassVar[tuple[float, float]] = (1.0, 3.0)  # m
    max_torque: ClassVar[float] = 90.0  # N m

    def __init__(self, num_envs: int, **options: Any) -> None:
        super().__init__(num_envs, **options)
        (m1, m2), (l1, l2) = self.masses, self.lengths
        # With theta2 = 0, inertia about the pivot is inertia1 + inertia2 + 2 coupling.
        self.inertia1 = (m1 / 3 + m2) * l1**2
        self.inertia2 = m2 * l2**2 / 3
        self.coupling = m2 * l1 * l2 / 2
        self.weight1 = (m1 / 2 + m2) * l1 * GRAVITY
        self.weight2 = m2 * l2 / 2 * GRAVITY

    def dynamics(self, state: Tensor) -> tuple[Tensor, Tensor, float, Tensor, Tensor]:
        """Entries m11, m12, m22 of the mass matrix, and the forces on both joints without the motor, each [N]."""
        first, second, rate1, rate2 = state.unbind(-1)
        bend = self.coupling * second.cos()
        m12 = self.inertia2 + bend
        m11 = self.inertia1 + m12 + bend
        whirl = self.coupling * second.sin()
        fall2 = self.weight2 * (first + second).sin()
        force1 = whirl * rate2 * (2 * rate1 + rate2) + self.weight1 * first.sin() + fall2
        force2 = fall2 - whirl * rate1.square()
        return m11, m12, self.inertia2, force1, force2

    def acceleration(self, state: Tensor, actions: Tensor) -> Tensor:
        m11, m12, m22, force1, force2 = self.dynamics(state)
        force2 = force2 + self.max_torque * actions[:, 0]
        determinant = m11 * m22 - m12.square()
        return torch.stack([m22 * force1 - m12 * force2, m11 * force2 - m12 * force1], -1) / determinant[:, None]

    def energy(self, state: Tensor) -> Tensor:
        first, second, rate1, rate2 = state.unbind(-1)
        both = rate1 + rate2
        moving = self.inertia1 * rate1.square() + self.inertia2 * both.square()
        moving = moving / 2 + self.coupling * second.cos() * rate1 * both
        return moving + self.weight1 * first.cos() + self.weight2 * (first + second).cos()

    def observe(self, state: Tensor) -> Tensor:
        first, second, rate1, rate2 = state.unbind(-1)
        return torch.stack([first.cos(), first.sin(), second.cos(), second.sin(), rate1, rate2], -1)

    def reward(self, state: Tensor, actions: Tensor) -> Tensor:
        first, second, rate1, rate2 = state.unbind(-1)
        rates = rate1.square() + rate2.square()
        return -wrapped(first).square() - wrapped(second).square() - 0.1 * rates


def wrapped(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi), with derivative 1: its square is continuous, with a kink where it hangs."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
