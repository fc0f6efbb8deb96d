"""The four robots, built from capsules and joints: dimensions and masses are our own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import newton
import numpy as np
import warp as wp

from torchrl_pwm.envs.simulators.newton.contact import Ground, Sphere
from torchrl_pwm.envs.simulators.pendulums import GRAVITY, CartPoleSwingUp, DoublePendulum

__all__ = ["ROBOTS", "Robot"]

Point = tuple[float, float, float]
_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


@dataclass
class Robot:
    """One articulation, and the spheres of it that may touch the ground.

    Attributes:
        builder: Newton's description, of one robot.
        motors: largest force [N] or torque [N m] by degree of freedom; the others are passive.
        spheres: what may touch the ground.
        ground: how it does.
    """

    builder: newton.ModelBuilder = field(
        default_factory=lambda: newton.ModelBuilder(up_axis=newton.Axis.Z, gravity=(0.0, 0.0, -GRAVITY))
    )
    motors: dict[int, float] = field(default_factory=dict)
    spheres: list[Sphere] = field(default_factory=list)
    ground: Ground = field(default_factory=lambda: Ground(stiffness=2e4, damping=0.5, friction=0.9, slope=1e3))

    def capsule(self, body: int, start: Point, end: Point, radius: float, density: float) -> None:
        """Adds a capsule from ``start`` to ``end``, in the frame of the body [m], whose ends may touch the ground."""
        along = wp.vec3(*end) - wp.vec3(*start)
        turn = wp.quat_between_vectors(wp.vec3(*_Z), wp.normalize(along))
        self.builder.add_shape_capsule(
            body,
            xform=wp.transform((wp.vec3(*start) + wp.vec3(*end)) * 0.5, turn),
            radius=radius,
            half_height=float(wp.length(along)) / 2,
            cfg=newton.ModelBuilder.ShapeConfig(density=density),
        )
        self.spheres += [Sphere(body, start, radius), Sphere(body, end, radius)]


def _at(point: Point) -> Any:
    return wp.transform(wp.vec3(*point), wp.quat_identity())


def cartpole() -> Robot:
    """A cart on rails along x, and a pole on it, with the parameters of the closed-form task."""
    task = CartPoleSwingUp
    robot = Robot()
    builder = robot.builder
    cart = builder.add_link(mass=task.cart_mass, inertia=wp.mat33(*np.eye(3).flatten()))
    pole = _rod(builder, task.pole_mass, task.pole_length)
    rails = builder.add_joint_prismatic(-1, cart, axis=_free_axis(_X))
    pivot = builder.add_joint_revolute(cart, pole, axis=_free_axis(_Y))
    builder.add_articulation([rails, pivot])
    robot.motors = {0: task.max_force}
    return robot


def double_pendulum() -> Robot:
    """Two rods with a motor between them, with the parameters of the closed-form task."""
    task = DoublePendulum
    robot = Robot()
    builder = robot.builder
    first, second = (_rod(builder, mass, length) for mass, length in zip(task.masses, task.lengths))
    pivot = builder.add_joint_revolute(-1, first, axis=_free_axis(_Y))
    middle = builder.add_joint_revolute(first, second, axis=_free_axis(_Y), parent_xform=_at((0, 0, task.lengths[0])))
    builder.add_articulation([pivot, middle])
    robot.motors = {1: task.max_torque}
    return robot


def _rod(builder: newton.ModelBuilder, mass: float, length: float) -> int:
    """A uniform thin rod that stands on its origin."""
    across, along = mass * length**2 / 12, 1e-4 * mass * length**2
    inertia = wp.mat33(*np.diag([across, across, along]).flatten())
    return builder.add_link(com=wp.vec3(0.0, 0.0, length / 2), mass=mass, inertia=inertia)


def ant() -> Robot:
    """A ball with four legs of a thigh, turned by the hip about the vertical, and a shin, lowered by the knee.

    Degrees of freedom: place and turn of the torso, 3 each, then hip and knee of the legs at 45, 135, 225 and 315
    degrees from x.
    """
    density, radius = 500.0, 0.08
    robot = Robot()
    builder = robot.builder
    # Two joints in place of a free one, whose velocity in Newton is that of the center of mass.
    carrier, torso = builder.add_link(), builder.add_link()
    builder.add_shape_sphere(torso, radius=0.25, cfg=newton.ModelBuilder.ShapeConfig(density=density))
    robot.spheres.append(Sphere(torso, (0.0, 0.0, 0.0), 0.25))
    axes = [_free_axis(axis) for axis in (_X, _Y, _Z)]
    joints = [builder.add_joint_d6(-1, carrier, linear_axes=axes), builder.add_joint_ball(carrier, torso)]
    for corner in range(4):
        heading = math.pi / 4 + corner * math.pi / 2
        x, y = math.cos(heading), math.sin(heading)
        thigh, shin = builder.add_link(), builder.add_link()
        robot.capsule(thigh, (0, 0, 0), (0.28 * x, 0.28 * y, 0), radius, density)
        robot.capsule(shin, (0, 0, 0), (0.56 * x, 0.56 * y, 0), radius, density)
        hip = _hinge(robot, torso, thigh, (0.28 * x, 0.28 * y, 0), _Z, (-0.6, 0.6))
        knee = _hinge(robot, thigh, shin, (0.28 * x, 0.28 * y, 0), (-y, x, 0), (0.6, 1.7), limit=1500.0)
        joints += [hip, knee]
    builder.add_articulation(joints)
    robot.motors = {6 + i: 150.0 for i in range(8)}
    return robot


def hopper() -> Robot:
    """A torso, thigh, shin and foot that move in the plane y = 0.

    Degrees of freedom: x, height and pitch of the torso, then hip, knee and ankle; all zero when it stands straight.
    """
    density = 1000.0
    robot = Robot()
    builder = robot.builder
    torso, thigh, shin, foot = (builder.add_link() for _ in range(4))
    robot.capsule(torso, (0, 0, 0), (0, 0, 0.4), 0.05, density)
    robot.capsule(thigh, (0, 0, 0), (0, 0, -0.45), 0.05, density)
    robot.capsule(shin, (0, 0, 0), (0, 0, -0.5), 0.04, density)
    robot.capsule(foot, (-0.13, 0, 0), (0.26, 0, 0), 0.06, density)
    plane = builder.add_joint_d6(
        -1,
        torso,
        parent_xform=_at((0, 0, HOPPER_HEIGHT)),
        linear_axes=[_free_axis(_X), _free_axis(_Z)],
        angular_axes=[_free_axis(_Y)],
    )
    hip = _hinge(robot, torso, thigh, (0, 0, 0), _Y, (-1.6, 0.5), armature=0.2)
    knee = _hinge(robot, thigh, shin, (0, 0, -0.45), _Y, (-0.2, 2.4), armature=0.2)
    ankle = _hinge(robot, shin, foot, (0, 0, -0.5), _Y, (-0.8, 0.8), armature=0.2)
    builder.add_articulation([plane, hip, knee, ankle])
    robot.motors = {3: 150.0, 4: 150.0, 5: 150.0}
    return robot


#: height of the hip of the hopper where its height coordinate is zero: 0.05 m above where it stands straight.
HOPPER_HEIGHT = 0.05 + 0.06 + 0.5 + 0.45


def _free_axis(axis: Point) -> Any:
    return newton.ModelBuilder.JointDofConfig(axis=axis, limit_ke=0.0, limit_kd=0.0)


def _hinge(
    robot: Robot,
    parent: int,
    child: int,
    at: Point,
    axis: Point,
    limits: tuple[float, float],
    armature: float = 0.05,
    limit: float = 500.0,
) -> int:
    # Damping of the limit would set in at once when it is reached: the spring alone is continuous.
    return robot.builder.add_joint_revolute(
        parent,
        child,
        parent_xform=_at(at),
        axis=axis,
        limit_lower=limits[0],
        limit_upper=limits[1],
        limit_ke=limit,
        limit_kd=0.0,
        damping=1.0,
        armature=armature,
    )


ROBOTS: dict[str, Callable[[], Robot]] = {
    "cartpole": cartpole,
    "double_pendulum": double_pendulum,
    "ant": ant,
    "hopper": hopper,
}
