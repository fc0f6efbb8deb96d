"""A robot as the tables that the kernels read: one entry a body, a degree of freedom or a sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import newton
import numpy as np
import warp as wp

from torchrl_pwm.envs.simulators.newton.contact import Sphere
from torchrl_pwm.envs.simulators.newton.kernels import BALL, HINGE

__all__ = ["Tables"]


class Tables:
    """Tables of one robot, shared by its copies.

    Args:
        robot (ModelBuilder): one articulation of revolute, prismatic, ball and D6 joints, the last with one angular
            axis at most. Joint and body of one index belong together, bodies come depth first, a joint's frame in its
            child is the child's own, and only hinges have limits.
        spheres (list of Sphere): what may touch the ground.
        device: Warp device.

    Raises:
        ValueError: for any other robot.
    """

    def __init__(self, robot: newton.ModelBuilder, spheres: Sequence[Sphere], device: Any) -> None:
        self.device = device
        self.bodies, self.dofs, self.coordinates = robot.body_count, robot.joint_dof_count, robot.joint_coord_count
        sliders, rotary = zip(*(_kind(robot, joint) for joint in range(self.bodies)))
        parent = list(robot.joint_parent)
        last = _last(parent)
        first_dof, first_coordinate = robot.joint_qd_start[: self.bodies], robot.joint_q_start[: self.bodies]
        dof_body = [
            body for body in range(self.bodies) for _ in range(sliders[body] + {HINGE: 1, BALL: 3}.get(rotary[body], 0))
        ]
        is_linear = [int(dof - first_dof[body] < sliders[body]) for dof, body in enumerate(dof_body)]
        moved = [[int(a <= b < last[a]) for b in dof_body] for a in dof_body]
        self.parent, self.last = self._ints(parent), self._ints(last)
        self.offset = self._array([tuple(frame.p) for frame in robot.joint_X_p], wp.vec3)
        self.turn = self._array([tuple(frame.q) for frame in robot.joint_X_p], wp.quat)
        self.sliders, self.rotary = self._ints(sliders), self._ints(rotary)
        self.first_coordinate, self.first_dof = self._ints(first_coordinate), self._ints(first_dof)
        self.axis = self._array([tuple(axis) for axis in robot.joint_axis], wp.vec3)
        self.dof_body, self.is_linear = self._ints(dof_body), self._ints(is_linear)
        self.moved = self._ints(np.array(moved))
        self.mass = self._floats(robot.body_mass)
        self.inertia = self._array(np.array([np.array(i).reshape(3, 3) for i in robot.body_inertia]), wp.mat33)
        self.center = self._array([tuple(com) for com in robot.body_com], wp.vec3)
        self.armature, self.damping = np.array(robot.joint_armature), self._floats(robot.joint_damping)
        self.limit, self.lower, self.upper = map(
            self._floats, (robot.joint_limit_ke, robot.joint_limit_lower, robot.joint_limit_upper)
        )
        by_body = sorted(spheres, key=lambda sphere: sphere.body)
        self.first_sphere = self._ints(np.searchsorted([s.body for s in by_body], range(self.bodies + 1)))
        self.sphere_center = self._array(np.array([s.center for s in by_body]).reshape(-1, 3), wp.vec3)
        self.sphere_radius = self._floats([s.radius for s in by_body])

    def _array(self, values: Any, dtype: Any) -> Any:
        return wp.array(np.asarray(values, np.float32), dtype=dtype, device=self.device)

    def _floats(self, values: Any) -> Any:
        return wp.array(np.asarray(values, np.float32), dtype=wp.float32, device=self.device)

    def _ints(self, values: Any) -> Any:
        return wp.array(np.asarray(values, np.int32), dtype=wp.int32, device=self.device)


def _kind(robot: newton.ModelBuilder, joint: int) -> tuple[int, int]:
    """Number of linear axes, and the kind of rotation, of a joint."""
    kind = robot.joint_type[joint]
    linear, angular = robot.joint_dof_dim[joint]
    if robot.joint_child[joint] != joint:
        raise ValueError(f"joint {joint} must carry body {joint}, found body {robot.joint_child[joint]}")
    if not np.allclose(tuple(robot.joint_X_c[joint]), (0, 0, 0, 0, 0, 0, 1)):
        raise ValueError(f"joint {joint} must have the frame of its child, found {robot.joint_X_c[joint]}")
    first = robot.joint_qd_start[joint]
    if any(robot.joint_limit_ke[first : first + linear]):
        raise ValueError(f"joint {joint} limits a linear axis: only hinges have limits")
    if kind == newton.JointType.BALL:
        return 0, BALL
    known = (newton.JointType.REVOLUTE, newton.JointType.PRISMATIC, newton.JointType.D6)
    if kind not in known or angular > 1:
        raise ValueError(f"joint {joint} must be a ball, or linear axes and one hinge at most, found {kind}")
    return linear, HINGE if angular else 0


def _last(parent: Sequence[int]) -> list[int]:
    """For every body, one past the last body that it carries."""
    last = list(range(1, len(parent) + 1))
    for body in reversed(range(len(parent))):
        above = parent[body]
        if above >= 0:
            last[above] = max(last[above], last[body])
    for body, above in enumerate(parent):
        carried = range(body, last[body])
        if above >= body or any(parent[other] not in carried for other in carried if other != body):
            raise ValueError(f"bodies must come depth first, found parents {list(parent)}")
    return last
