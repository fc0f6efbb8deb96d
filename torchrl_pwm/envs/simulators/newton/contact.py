"""The ground: a fixed list of spheres against the plane z = 0.

There is no collision detection: which points may touch is part of the robot, and the force of each is a continuous
function of the state. So its gradient is right in contact, and the same launches do for every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import warp as wp

__all__ = ["Ground", "Sphere"]


@dataclass(frozen=True)
class Sphere:
    """A sphere fixed to a body that may touch the ground.

    Attributes:
        body: index of the body in its robot.
        center: in the frame of the body [m].
        radius: [m].
    """

    body: int
    center: tuple[float, float, float]
    radius: float


@dataclass(frozen=True)
class Ground:
    """The law of contact for penetration depth d, normal speed n (negative on approach) and sliding velocity s.

    Normal force f = stiffness d max(0, 1 - damping n), after Hunt and Crossley (1975): it starts at zero, and it never
    pulls. Friction -slope s f mu / sqrt((f mu)^2 + (slope |s|)^2): viscous at low speed, with the limit of Coulomb.

    Attributes:
        stiffness: [N/m].
        damping: [s/m].
        friction: coefficient mu.
        slope: of the friction at rest, at most [N s/m].
    """

    stiffness: float
    damping: float
    friction: float
    slope: float


@wp.func
def ground_wrench(
    lowest: wp.vec3, velocity: wp.vec3, stiffness: float, damping: float, friction: float, slope: float
) -> wp.spatial_vector:
    """Force [N] on the lowest point of a sphere, which moves with ``velocity``, and its moment about the origin."""
    if lowest[2] >= 0.0:
        return wp.spatial_vector()
    normal = -stiffness * lowest[2] * wp.max(0.0, 1.0 - damping * velocity[2])
    if normal <= 0.0:
        return wp.spatial_vector()
    limit = friction * normal
    sliding = wp.vec3(velocity[0], velocity[1], 0.0)
    root = wp.sqrt(limit * limit + slope * slope * wp.dot(sliding, sliding))
    push = wp.vec3(0.0, 0.0, normal) - (slope * limit / root) * sliding
    return wp.spatial_vector(push, wp.cross(lowest, push))
