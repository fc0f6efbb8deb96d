"""Parts of robots: capsules, joints, motors, and the ground under them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import newton
import warp as wp

from torchrl_pwm.envs.simulators.newton.contact import Ground, Sphere
from torchrl_pwm.envs.simulators.pendulums import GRAVITY

__all__ = ["Robot", "at", "free_axis", "hinge"]

Point = tuple[float, float, float]
X, Y, Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


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
        turn = wp.quat_between_vectors(wp.vec3(*Z), wp.normalize(along))
        self.builder.add_shape_capsule(
            body,
            xform=wp.transform((wp.vec3(*start) + wp.vec3(*end)) * 0.5, turn),
            radius=radius,
            half_height=float(wp.length(along)) / 2,
            cfg=newton.ModelBuilder.ShapeConfig(density=density),
        )
        self.spheres += [Sphere(body, start, radius), Sphere(body, end, radius)]

    def ball(self, body: int, center: Point, radius: float, density: float) -> None:
        """Adds a ball around ``center``, in the frame of the body [m], which may touch the ground."""
        shape = newton.ModelBuilder.ShapeConfig(density=density)
        self.builder.add_shape_sphere(body, xform=at(center), radius=radius, cfg=shape)
        self.spheres.append(Sphere(body, center, radius))

    def floating(self) -> tuple[int, list[int]]:
        """A body that moves freely, and its joints: three axes and a ball.

        They are two in place of a free joint, whose velocity in Newton is that of the center of mass.
        """
        base, body = self.builder.add_link(), self.builder.add_link()
        slides = self.builder.add_joint_d6(-1, base, linear_axes=[free_axis(axis) for axis in (X, Y, Z)])
        return body, [slides, self.builder.add_joint_ball(base, body)]


def at(point: Point) -> Any:
    """The frame at ``point`` [m] that is not turned."""
    return wp.transform(wp.vec3(*point), wp.quat_identity())


def free_axis(axis: Point) -> Any:
    """Motion along or about ``axis`` without limits."""
    return newton.ModelBuilder.JointDofConfig(axis=axis, limit_ke=0.0, limit_kd=0.0)


def hinge(
    robot: Robot,
    parent: int,
    child: int,
    place: Point,
    axis: Point,
    limits: tuple[float, float],
    armature: float = 0.05,
    limit: float = 500.0,
    damping: float = 1.0,
) -> int:
    """Adds a joint about ``axis`` at ``place``, in the frame of the parent [m], and returns its index.

    A spring of ``limit`` [N m/rad] holds it within ``limits`` [rad]; ``armature`` [kg m^2] is the inertia of its motor
    and ``damping`` [N m s/rad] its friction.
    """
    # Damping of the limit would set in at once when it is reached: the spring alone is continuous.
    return robot.builder.add_joint_revolute(
        parent,
        child,
        parent_xform=at(place),
        axis=axis,
        limit_lower=limits[0],
        limit_upper=limits[1],
        limit_ke=limit,
        limit_kd=0.0,
        damping=damping,
        armature=armature,
    )
