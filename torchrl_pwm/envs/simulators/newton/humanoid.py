"""A humanoid of 21 hinges: dimensions, masses and motors are our own."""

from __future__ import annotations

from torchrl_pwm.envs.simulators.newton.robot import Point, Robot, X, Y, Z, hinge

__all__ = ["POSE", "STANDING", "humanoid"]

#: for every hinge its angle at a start [rad]: upright, with knees and elbows a little bent.
POSE = (0.0, 0.0, 0.0, *2 * (0.0, 0.0, -0.15, 0.3, -0.15, 0.0), *2 * (0.0, 0.0, -0.4))

_DENSITY = 1000.0  # kg/m^3
_WAIST, _HIPS, _THIGH, _SHIN, _ANKLE = 0.25, 0.15, 0.4, 0.39, 0.07  # m, lengths between joints, and down to the sole

#: height of the torso where it stands straight [m].
STANDING = _WAIST + _HIPS + _THIGH + _SHIN + _ANKLE


def humanoid() -> Robot:
    """A torso with a head, a pelvis, two legs with feet and two arms, 1.62 m and 46 kg; x is forward.

    Degrees of freedom: place and turn of the torso, 3 each, then 21 hinges. All are zero where it stands straight.

    | of | hinges, each about an axis of its parent | motors [N m] |
    |---|---|---|
    | the pelvis | turn, bend, lean | 120 |
    | each leg | hip: spread, turn out, stretch back; knee | 100, knee 90 |
    | | ankle: point, roll | 40 |
    | each arm | shoulder: swing back, spread; elbow | 30, elbow 20 |

    The right leg and arm come before the left; equal angles on both sides are mirror images. Joints of several axes are
    chains of hinges, on links without mass that the inertia of their motors holds. Limbs pass through each other.
    """
    robot = Robot()
    torso, joints = robot.floating()
    motors: list[float] = []

    def limb(parent: int, place: Point, hinges: list[tuple[Point, tuple[float, float]]], motor: float) -> int:
        """The body at the end of a chain of hinges, of which each is an axis and its limits."""
        for axis, limits in hinges:
            child = robot.builder.add_link()
            damping = motor / 25  # a motor at full effort turns an idle joint at 25 rad/s
            joints.append(hinge(robot, parent, child, place, axis, limits, armature=0.1, damping=damping))
            motors.append(motor)
            parent, place = child, (0.0, 0.0, 0.0)
        return parent

    robot.capsule(torso, (0, -0.1, 0), (0, 0.1, 0), 0.08, _DENSITY)
    robot.capsule(torso, (0, -0.07, -0.16), (0, 0.07, -0.16), 0.07, _DENSITY)
    robot.ball(torso, (0, 0, 0.26), 0.1, _DENSITY)
    pelvis = limb(torso, (0, 0, -_WAIST), [(Z, (-0.8, 0.8)), (Y, (-1.2, 0.5)), (X, (-0.6, 0.6))], 120.0)
    robot.capsule(pelvis, (0, -0.08, -0.1), (0, 0.08, -0.1), 0.09, _DENSITY)
    for side in (-1.0, 1.0):
        outward, up = (side, 0.0, 0.0), (0.0, 0.0, side)
        hip = [(outward, (-0.3, 0.7)), (up, (-0.6, 0.6)), (Y, (-1.9, 0.5))]
        thigh = limb(pelvis, (0, 0.1 * side, -_HIPS), hip, 100.0)
        robot.capsule(thigh, (0, 0, -0.03), (0, 0, 0.06 - _THIGH), 0.06, _DENSITY)
        shin = limb(thigh, (0, 0, -_THIGH), [(Y, (0.02, 2.6))], 90.0)
        robot.capsule(shin, (0, 0, 0), (0, 0, -0.3), 0.05, _DENSITY)
        foot = limb(shin, (0, 0, -_SHIN), [(Y, (-0.8, 0.8)), (outward, (-0.5, 0.5))], 40.0)
        for edge in (-0.03, 0.03):
            robot.capsule(foot, (-0.06, edge, 0.04 - _ANKLE), (0.14, edge, 0.04 - _ANKLE), 0.04, _DENSITY)
    for side in (-1.0, 1.0):
        shoulder = [(Y, (-1.5, 1.5)), ((side, 0.0, 0.0), (-0.2, 1.5))]
        upper = limb(torso, (0, 0.19 * side, 0.06), shoulder, 30.0)
        robot.capsule(upper, (0, 0, 0), (0, 0, -0.25), 0.04, _DENSITY)
        lower = limb(upper, (0, 0, -0.28), [(Y, (-2.0, -0.02))], 20.0)
        robot.capsule(lower, (0, 0, 0), (0, 0, -0.24), 0.035, _DENSITY)
    robot.builder.add_articulation(joints)
    robot.motors = {6 + index: motor for index, motor in enumerate(motors)}
    return robot
