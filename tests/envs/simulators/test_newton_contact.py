"""Motion of Newton's robots: the solver's own, weight, sliding, free fall, and captured launches."""

from __future__ import annotations

import pytest
import torch

newton = pytest.importorskip("newton")

from torchrl_pwm.envs.simulators.newton.contact import Ground, Sphere  # noqa: E402
from torchrl_pwm.envs.simulators.newton.humanoid import POSE  # noqa: E402
from torchrl_pwm.envs.simulators.newton.models import ROBOTS  # noqa: E402
from torchrl_pwm.envs.simulators.newton.physics import NewtonPhysics  # noqa: E402
from torchrl_pwm.envs.simulators.newton.robot import Robot  # noqa: E402
from torchrl_pwm.envs.simulators.pendulums import GRAVITY  # noqa: E402

STEP = 1 / 60
MASS, RADIUS = 2.0, 0.1
GROUND = Ground(stiffness=2000.0, damping=1.0, friction=0.5, slope=100.0)


def ball():
    """A ball that moves in x and z without turning, pushed along x by a motor of 20 N."""
    robot = Robot(ground=GROUND, spheres=[Sphere(0, (0.0, 0.0, 0.0), RADIUS)], motors={0: 20.0})
    builder = robot.builder
    axis = newton.ModelBuilder.JointDofConfig
    body = builder.add_link(mass=MASS, inertia=((0.01, 0, 0), (0, 0.01, 0), (0, 0, 0.01)))
    axes = [axis(axis=(1, 0, 0), limit_ke=0, limit_kd=0), axis(axis=(0, 0, 1), limit_ke=0, limit_kd=0)]
    builder.add_articulation([builder.add_joint_d6(-1, body, linear_axes=axes)])
    return robot


def physics(make_robot, num_envs=1, **options):
    options = {"requires_grad": False, "substeps": 16, "dt": STEP, **options}
    return NewtonPhysics(make_robot, num_envs, device=torch.device("cpu"), **options)


def run(simulation, q, v, actions, steps):
    for _ in range(steps):
        q, v = simulation.step(q, v, actions)
    return q, v


def test_a_ball_at_rest_sinks_in_by_its_weight_over_the_stiffness():
    q, v = run(physics(ball), torch.tensor([[0.0, RADIUS]]), torch.zeros(1, 2), torch.zeros(1, 1), 120)
    assert RADIUS - q[0, 1].item() == pytest.approx(MASS * GRAVITY / GROUND.stiffness, rel=1e-3)
    assert v.abs().max() < 1e-4


def test_a_fast_ball_slides_with_the_friction_of_coulomb():
    q, v = run(physics(ball), torch.tensor([[0.0, RADIUS]]), torch.zeros(1, 2), torch.zeros(1, 1), 120)
    v = v + torch.tensor([[8.0, 0.0]])
    _, after = run(physics(ball), q, v, torch.zeros(1, 1), 6)
    assert (v - after)[0, 0].item() == pytest.approx(GROUND.friction * GRAVITY * 6 * STEP, rel=2e-2)


def test_a_ball_pushed_below_the_limit_of_friction_creeps_only():
    start = torch.tensor([[0.0, RADIUS - MASS * GRAVITY / GROUND.stiffness]])
    push = torch.tensor([[0.25]])  # 5 N, where friction holds up to 9.8 N
    _, v = run(physics(ball), start, torch.zeros(1, 2), push, 120)
    limit = GROUND.friction * MASS * GRAVITY
    assert v[0, 0].item() == pytest.approx(5 / GROUND.slope / (1 - (5 / limit) ** 2) ** 0.5, rel=1e-2)


def test_bouncing_loses_energy():
    q, v = torch.tensor([[0.0, RADIUS + 0.5]]), torch.zeros(1, 2)
    simulation, heights = physics(ball), []
    for _ in range(90):
        q, v = simulation.step(q, v, torch.zeros(1, 1))
        heights.append(q[0, 1].item())
    lowest = heights.index(min(heights[:30]))
    assert min(heights) > 0 and RADIUS + 0.01 < max(heights[lowest:]) < RADIUS + 0.45


@pytest.mark.parametrize("name", ["ant", "hopper", "humanoid"])
def test_robots_in_the_air_fall_freely(name):
    simulation = physics(ROBOTS[name])
    q = torch.tensor(ROBOTS[name]().builder.joint_q)[None]
    height = 1 if name == "hopper" else 2
    q[0, height] = 5
    if name == "ant":
        q[0, 8::2] = 1.0  # knees between their limits
    if name == "humanoid":
        q[0, 7:] = torch.tensor(POSE)
    v = torch.zeros(1, ROBOTS[name]().builder.joint_dof_count)
    actions = torch.zeros(1, len(ROBOTS[name]().motors))
    _, v = run(simulation, q, v, actions, 12)
    assert v[0, height].item() == pytest.approx(-GRAVITY * 12 * STEP, rel=1e-4)
    v[0, height] = 0
    assert v.abs().max() < 1e-3


@pytest.mark.parametrize("name", ROBOTS)
def test_captured_launches_give_the_same_bits(name):
    results = []
    for capture in (False, True):
        simulation = physics(ROBOTS[name], 2, capture=capture, requires_grad=True)
        q = torch.tensor(ROBOTS[name]().builder.joint_q).expand(2, -1) + 0.1
        v = torch.zeros(2, ROBOTS[name]().builder.joint_dof_count)
        size = len(ROBOTS[name]().motors)
        actions = (torch.arange(4 * 2 * size).view(4, 2, size).sin()).requires_grad_()
        for action in actions:
            q, v = simulation.step(q, v, action)
        (gradient,) = torch.autograd.grad(q.square().sum() + v.square().sum(), actions)
        results.append((q.detach(), v.detach(), gradient))
    assert all(map(torch.equal, *results))
    assert results[0][2].any()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "humanoid" else []) for name in ROBOTS]
)
def test_motion_in_the_air_is_that_of_newtons_featherstone_solver(name):
    def undamped():
        robot = ROBOTS[name]()
        robot.builder.joint_damping = [0.0] * robot.builder.joint_dof_count
        return robot

    robot, steps = undamped(), 16
    simulation = physics(undamped, 2, substeps=steps, refreshes=steps)
    worlds = newton.ModelBuilder(up_axis=newton.Axis.Z, gravity=robot.builder.gravity)
    worlds.replicate(robot.builder, 2)
    model = worlds.finalize(device="cpu")
    q = torch.tensor(model.joint_q.numpy()).view(2, -1) + torch.rand(2, robot.builder.joint_coord_count)
    if robot.spheres:
        q[:, 1 if name == "hopper" else 2] = 5.0
    if name in ("ant", "humanoid"):
        q[:, 3:7] = torch.nn.functional.normalize(q[:, 3:7], dim=-1)
    v = torch.randn(2, robot.builder.joint_dof_count)
    actions = torch.rand(2, len(robot.motors))

    before, after, control = model.state(), model.state(), model.control()
    before.joint_q.assign(q.flatten().numpy())
    before.joint_qd.assign(v.flatten().numpy())
    newton.eval_fk(model, before.joint_q, before.joint_qd, before)
    for motor, (dof, strength) in enumerate(robot.motors.items()):
        force = torch.tensor(control.joint_f.numpy()).view(2, -1)
        force[:, dof] = strength * actions[:, motor]
        control.joint_f.assign(force.flatten().numpy())
    solver = newton.solvers.SolverFeatherstone(model)
    for _ in range(steps):
        solver.step(before, after, control, None, STEP / steps)
        before, after = after, before

    next_q, next_v = simulation.step(q, v, actions)
    assert (next_v - v).abs().max() > 0.1
    torch.testing.assert_close(next_q.flatten(), torch.tensor(before.joint_q.numpy()), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(next_v.flatten(), torch.tensor(before.joint_qd.numpy()), atol=2e-3, rtol=1e-3)


def test_a_second_derivative_is_refused():
    simulation = physics(ball, requires_grad=True)
    action = torch.zeros(1, 1, requires_grad=True)
    q, _ = simulation.step(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), action)
    (gradient,) = torch.autograd.grad(q.square().sum(), action, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_gradients_of_a_simulation_built_without_are_refused():
    action = torch.zeros(1, 1, requires_grad=True)
    with pytest.raises(RuntimeError, match="built with requires_grad=False"):
        physics(ball).step(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), action)


def test_robots_that_the_kernels_do_not_know_are_refused():
    def floating():
        robot = ball()
        body = robot.builder.add_link(mass=1.0)
        robot.builder.add_articulation([robot.builder.add_joint_free(body)])
        return robot

    with pytest.raises(ValueError, match="joint 1 must be a ball, or linear axes and one hinge at most"):
        physics(floating)
    with pytest.raises(ValueError, match="refreshes must divide substeps, found 3 and 16"):
        physics(ball, refreshes=3)
