"""Ground contact as generalized forces: a fixed list of spheres against the plane z = 0.

The Featherstone solver of Newton 1.8 takes contact forces as wrenches on bodies and overwrites their buffer in place,
so that its gradient with respect to the pose of a loaded body is wrong; a force on a free joint goes the same way. Here
the forces are mapped to the joints (J^T f) by kernels of our own and enter as joint forces, whose gradient is right. As
the list of spheres is fixed, there is no collision detection and no contact buffer that a later step could overwrite,
and the force is a continuous function of the state.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import newton
import numpy as np
import warp as wp

__all__ = ["Ground", "GroundContact", "Sphere"]


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


@wp.kernel
def _sphere_forces(
    body_q: wp.array[wp.transform],
    body_qd: wp.array[wp.spatial_vector],
    body_com: wp.array[wp.vec3],
    bodies: int,
    sphere_body: wp.array[int],
    sphere_center: wp.array[wp.vec3],
    sphere_radius: wp.array[float],
    stiffness: float,
    damping: float,
    friction: float,
    slope: float,
    force: wp.array2d[wp.vec3],
    position: wp.array2d[wp.vec3],
):
    world, sphere = wp.tid()
    body = world * bodies + sphere_body[sphere]
    pose = body_q[body]
    up = wp.vec3(0.0, 0.0, 1.0)
    lowest = wp.transform_point(pose, sphere_center[sphere]) - sphere_radius[sphere] * up
    depth = -wp.dot(lowest, up)
    push = wp.vec3(0.0, 0.0, 0.0)
    if depth > 0.0:
        arm = lowest - wp.transform_point(pose, body_com[body])
        velocity = wp.spatial_top(body_qd[body]) + wp.cross(wp.spatial_bottom(body_qd[body]), arm)
        normal_speed = wp.dot(velocity, up)
        normal = stiffness * depth * wp.max(0.0, 1.0 - damping * normal_speed)
        if normal > 0.0:
            sliding = velocity - normal_speed * up
            limit = friction * normal
            root = wp.sqrt(limit * limit + slope * slope * wp.dot(sliding, sliding))
            push = normal * up - (slope * limit / root) * sliding
    force[world, sphere] = push
    position[world, sphere] = lowest


@wp.kernel
def _joint_forces(
    body_q: wp.array[wp.transform],
    bodies: int,
    dofs: int,
    axis: wp.array[wp.vec3],
    axis_body: wp.array[int],
    origin: wp.array[wp.vec3],
    origin_body: wp.array[int],
    is_linear: wp.array[int],
    moves: wp.array2d[float],
    spheres: int,
    force: wp.array2d[wp.vec3],
    position: wp.array2d[wp.vec3],
    applied: wp.array[float],
    total: wp.array[float],
):
    world, dof = wp.tid()
    direction = axis[dof]
    if axis_body[dof] >= 0:
        direction = wp.transform_vector(body_q[world * bodies + axis_body[dof]], axis[dof])
    pivot = wp.transform_point(body_q[world * bodies + origin_body[dof]], origin[dof])
    result = applied[world * dofs + dof]
    for sphere in range(spheres):
        f = moves[dof, sphere] * force[world, sphere]
        if is_linear[dof] == 1:
            result += wp.dot(direction, f)
        else:
            result += wp.dot(direction, wp.cross(position[world, sphere] - pivot, f))
    total[world * dofs + dof] = result


class GroundContact:
    """Contact of a robot's spheres with the ground, for N copies of the robot.

    Args:
        robot (ModelBuilder): the robot, one articulation of revolute, prismatic, ball and D6 joints, the last with one
            angular axis at most.
        spheres (list of Sphere): what may touch the ground.
        ground (Ground): the law of contact.
        num_envs (int): number of copies N.
        device: Warp device.
    """

    def __init__(
        self, robot: newton.ModelBuilder, spheres: list[Sphere], ground: Ground, num_envs: int, device: Any
    ) -> None:
        self.num_envs, self.bodies, self.spheres = num_envs, robot.body_count, len(spheres)
        self.ground = ground
        self.device = device
        self._sphere_table = (
            self._array([sphere.body for sphere in spheres], int),
            self._array([sphere.center for sphere in spheres], wp.vec3),
            self._array([sphere.radius for sphere in spheres], float),
        )
        table = _dof_table(robot)
        self.dofs = len(table)
        above = _ancestors(robot)
        moves = [[float(row.origin_body in above[sphere.body]) for sphere in spheres] for row in table]
        self._dof_table = (
            self._array([row.axis for row in table], wp.vec3),
            self._array([row.axis_body for row in table], int),
            self._array([row.origin for row in table], wp.vec3),
            self._array([row.origin_body for row in table], int),
            self._array([int(row.is_linear) for row in table], int),
            self._array(np.array(moves, np.float32), float),
        )

    def _array(self, values: Any, dtype: Any) -> Any:
        return wp.array(values, dtype=dtype, device=self.device)

    def buffers(self, requires_grad: bool) -> tuple[Any, Any]:
        """New arrays for force and position of every sphere, vec3 [N, P] each."""
        shape = (self.num_envs, self.spheres)
        force, position = (
            wp.zeros(shape, dtype=wp.vec3, device=self.device, requires_grad=requires_grad) for _ in range(2)
        )
        return force, position

    def __call__(self, model: Any, state: Any, applied: Any, buffers: tuple[Any, Any], total: Any) -> None:
        """Writes ``applied`` joint forces plus those of contact at ``state`` to ``total``, float [N D] each."""
        force, position = buffers
        law = astuple(self.ground)
        wp.launch(
            _sphere_forces,
            dim=(self.num_envs, self.spheres),
            inputs=[state.body_q, state.body_qd, model.body_com, self.bodies, *self._sphere_table, *law],
            outputs=[force, position],
            device=self.device,
        )
        wp.launch(
            _joint_forces,
            dim=(self.num_envs, self.dofs),
            inputs=[state.body_q, self.bodies, self.dofs, *self._dof_table, self.spheres, force, position, applied],
            outputs=[total],
            device=self.device,
        )


@dataclass(frozen=True)
class _Dof:
    """A degree of freedom: motion along or about ``axis`` through ``origin``, in the frames of bodies (-1: world)."""

    axis: tuple[float, float, float]
    axis_body: int
    origin: tuple[float, float, float]
    origin_body: int
    is_linear: bool


def _dof_table(robot: newton.ModelBuilder) -> list[_Dof]:
    table = []
    for joint, kind in enumerate(robot.joint_type):
        child, parent = robot.joint_child[joint], robot.joint_parent[joint]
        frame, anchor = robot.joint_X_p[joint], robot.joint_X_c[joint]
        first = robot.joint_qd_start[joint]
        linear_axes, angular_axes = robot.joint_dof_dim[joint]
        for index in range(linear_axes + angular_axes):
            axis = np.eye(3)[index] if kind == newton.JointType.BALL else robot.joint_axis[first + index]
            turned = wp.quat_rotate(frame.q, wp.vec3(*axis))
            table.append(_Dof(tuple(turned), parent, tuple(anchor.p), child, index < linear_axes))
    return table


def _ancestors(robot: newton.ModelBuilder) -> list[set[int]]:
    """For every body, itself and the bodies between it and the root."""
    parent = dict(zip(robot.joint_child, robot.joint_parent))
    chains = []
    for body in range(robot.body_count):
        chain = set()
        while body >= 0:
            chain.add(body)
            body = parent[body]
        chains.append(chain)
    return chains
