"""Copies of a robot as one differentiable torch function per control step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple
from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchrl_pwm.envs.simulators.newton import kernels
from torchrl_pwm.envs.simulators.newton.robot import Robot
from torchrl_pwm.envs.simulators.newton.tables import Tables

__all__ = ["NewtonPhysics"]


class NewtonPhysics:
    """N copies of a robot, advanced together by one control step at a time.

    The state stays with the caller, as torch tensors: joint positions q [N, Q] and velocities v [N, D]. Actions are
    held during the step. The state at every solver step is kept for the backward pass, which computes all else again
    from it; the mass matrix is that of the first of ``substeps / refreshes`` solver steps.

    Launches of the step are captured once, as a CUDA graph on a GPU and as Warp's list of calls on a CPU, and replayed.

    Args:
        make_robot (callable): returns what to simulate.
        num_envs (int): number of copies N.

    Keyword Args:
        device (torch.device): CPU or CUDA.
        requires_grad (bool): whether :meth:`step` is to be differentiable.
        substeps (int): solver steps in a control step.
        dt (float): length of the control step [s].
        refreshes (int): how often the mass matrix is computed in a control step; divides ``substeps``.
        capture (bool): whether launches are captured and replayed.

    Raises:
        ValueError: if ``refreshes`` does not divide ``substeps``, or the robot is one that :class:`Tables` refuses.
    """

    def __init__(
        self,
        make_robot: Callable[[], Robot],
        num_envs: int,
        *,
        device: torch.device,
        requires_grad: bool,
        substeps: int,
        dt: float,
        refreshes: int = 1,
        capture: bool = True,
    ) -> None:
        if substeps < 1 or refreshes < 1 or substeps % refreshes:
            raise ValueError(f"refreshes must divide substeps, found {refreshes} and {substeps}")
        self.device, self.requires_grad = device, requires_grad
        with _quiet():
            wp.init()
            robot = make_robot()
            self._steps = _Steps(robot, num_envs, wp.device_from_torch(device), substeps, dt, refreshes, requires_grad)
        self._forward = _Replay(self._steps.simulate, self._steps.device, capture)
        self._backward = _Replay(self._steps.differentiate, self._steps.device, capture)
        self._drive = torch.zeros(len(robot.motors), robot.builder.joint_dof_count)
        for motor, (dof, strength) in enumerate(robot.motors.items()):
            self._drive[motor, dof] = strength
        self._drive = self._drive.to(device)

    def step(self, q: Tensor, v: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [N, Q] and velocities [N, D] one control step later, with ``actions`` [N, A] in [-1, 1].

        Raises:
            RuntimeError: if gradients are asked for, but were not at construction.
        """
        if not self.requires_grad and torch.is_grad_enabled() and any(t.requires_grad for t in (q, v, actions)):
            raise RuntimeError("gradients are asked of a simulation that was built with requires_grad=False")
        return _Step.apply(q, v, actions @ self._drive, self)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """Warp works on the stream of torch, and prints nothing."""
        with _quiet():
            if self.device.type != "cuda":
                yield
                return
            with wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(self.device))):
                yield

    def forward(self, q: Tensor, v: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """States at the ends of all solver steps and, first, the start: q [S + 1, N, Q] and v [S + 1, N, D].

        They are overwritten by the next call. ``f`` [N, D] are joint forces.
        """
        steps = self._steps
        steps.q[0].copy_(q)
        steps.v[0].copy_(v)
        steps.applied.copy_(f)
        with self._stream():
            self._forward()
        return steps.q, steps.v

    def backward(self, q: Tensor, v: Tensor, f: Tensor, dq: Tensor, dv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, v and f at the start from those at the end, given the states of :meth:`forward`."""
        steps = self._steps
        for mine, given in ((steps.q, q), (steps.v, v), (steps.applied, f), (steps.dq[-1], dq), (steps.dv[-1], dv)):
            mine.copy_(given)
        for result in (steps.dq[0], steps.dv[0], steps.dapplied):
            result.zero_()
        with self._stream():
            self._backward()
        return steps.dq[0].clone(), steps.dv[0].clone(), steps.dapplied.clone()


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, f: Tensor, physics: NewtonPhysics) -> tuple[Tensor, Tensor]:
        all_q, all_v = physics.forward(q, v, f)
        if any(ctx.needs_input_grad):
            ctx.physics = physics
            ctx.save_for_backward(all_q.clone(), all_v.clone(), f)
        return all_q[-1].clone(), all_v[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.physics.backward(*ctx.saved_tensors, dq, dv), None)


class _Steps:
    """The arrays and the launches of one control step.

    Torch and Warp share q [S + 1, N, Q], v [S + 1, N, D], applied [N, D] and their gradients. What a solver step
    computes in between is written anew by the next. A kernel that reads the gradient of what it has written leaves
    zero there (Warp's rule), so that nothing of one solver step is left for another.
    """

    def __init__(
        self, robot: Robot, num_envs: int, device: Any, substeps: int, dt: float, refreshes: int, requires_grad: bool
    ) -> None:
        self.device, self.num_envs, self.interval = device, num_envs, substeps // refreshes
        self.requires_grad, self.dt = requires_grad, dt / substeps
        table = self.table = Tables(robot.builder, robot.spheres, device)
        self.gravity, self.ground = wp.vec3(*robot.builder.gravity), astuple(robot.ground)
        place = torch.device(str(wp.device_to_torch(device)))
        shapes = ((substeps + 1, num_envs, table.coordinates), (substeps + 1, num_envs, table.dofs))
        self.q, self.v, self.dq, self.dv = (torch.zeros(shape, device=place) for shape in 2 * shapes)
        self.applied, self.dapplied = (torch.zeros(num_envs, table.dofs, device=place) for _ in range(2))
        states = ((self.q, self.dq), (self.v, self.dv))
        self._q, self._v = ([self._shared(*pair) for pair in zip(*both)] for both in states)
        self._applied = self._shared(self.applied, self.dapplied)
        vectors = [self._new(wp.vec3) for _ in range(7)]
        self._position, self._spin, self._speed, self._spin_bias, self._speed_bias, self._force, self._moment = vectors
        self._rotation = self._new(wp.quat)
        self._direction = self._new(wp.vec3, table.dofs)
        self._total, self._work, self._acceleration = (self._new(wp.float32, table.dofs) for _ in range(3))
        self._h, self._factor = (self._new(wp.float32, table.dofs, table.dofs) for _ in range(2))
        # Damping of the joints is implicit: as part of H, it is stable in steps of any length.
        self._diagonal = table._floats(table.armature + self.dt * table.damping.numpy())

    def _shared(self, values: Tensor, gradients: Tensor) -> Any:
        array = wp.from_torch(values, requires_grad=False)
        if self.requires_grad:
            array.grad = wp.from_torch(gradients, requires_grad=False)
        return array

    def _new(self, dtype: Any, *size: int) -> Any:
        shape = (self.num_envs, *(size or (self.table.bodies,)))
        return wp.zeros(shape, dtype=dtype, device=self.device, requires_grad=self.requires_grad)

    def simulate(self) -> None:
        """The states at the ends of the solver steps, from q[0], v[0] and the applied forces."""
        for index in range(len(self._q) - 1):
            self._motion(index)
            if index % self.interval == 0:
                self._mass_matrix()
                self._cholesky()
            self._wrenches()
            self._joint_forces(index)
            self._advance(index)

    def differentiate(self) -> None:
        """Gradients at the start from those at the end, given all states."""
        for index in reversed(range(len(self._q) - 1)):
            first = index - index % self.interval
            if index == first + self.interval - 1:
                self._motion(first)
                self._mass_matrix()
                self._cholesky()
            self._motion(index)
            self._wrenches()
            self._joint_forces(index)
            self._advance(index, adjoint=True)
            self._joint_forces(index, adjoint=True)
            self._wrenches(adjoint=True)
            if index == first:
                self._mass_matrix(adjoint=True)
            self._motion(index, adjoint=True)

    def _poses(self) -> list[Any]:
        return [self._position, self._rotation, self._spin, self._speed, self._spin_bias, self._speed_bias]

    def _motion(self, index: int, adjoint: bool = False) -> None:
        t = self.table
        joints = [t.parent, t.offset, t.turn, t.sliders, t.rotary, t.first_coordinate, t.first_dof, t.axis]
        inputs = [self._q[index], self._v[index], *joints]
        self._launch(kernels.motion, self.num_envs, inputs, [*self._poses(), self._direction], adjoint)

    def _wrenches(self, adjoint: bool = False) -> None:
        t = self.table
        spheres = [t.first_sphere, t.sphere_center, t.sphere_radius]
        inputs = [*self._poses(), t.mass, t.inertia, t.center, self.gravity, *spheres, *self.ground]
        self._launch(kernels.wrenches, (self.num_envs, t.bodies), inputs, [self._force, self._moment], adjoint)

    def _mass_matrix(self, adjoint: bool = False) -> None:
        t = self.table
        bodies = [t.mass, t.inertia, t.center, t.last, t.dof_body, t.is_linear, t.moved]
        inputs = [self._position, self._rotation, self._direction, *bodies]
        self._launch(kernels.mass_matrix, (self.num_envs, t.dofs), inputs, [self._h], adjoint)

    def _cholesky(self) -> None:
        self._launch(kernels.cholesky, self.num_envs, [self._h, self._diagonal], [self._factor], False)

    def _joint_forces(self, index: int, adjoint: bool = False) -> None:
        t = self.table
        bodies = [self._position, self._direction, self._force, self._moment]
        joints = [t.last, t.sliders, t.rotary, t.first_coordinate, t.first_dof, t.lower, t.upper, t.limit, t.damping]
        inputs = [self._q[index], self._v[index], self._applied, *bodies, *joints]
        self._launch(kernels.joint_forces, (self.num_envs, t.bodies), inputs, [self._total], adjoint)

    def _advance(self, index: int, adjoint: bool = False) -> None:
        t = self.table
        joints = [t.sliders, t.rotary, t.first_coordinate, t.first_dof]
        inputs = [self._q[index], self._v[index], self._total, self._h, self._factor, *joints, self.dt]
        outputs = [self._work, self._acceleration, self._q[index + 1], self._v[index + 1]]
        self._launch(kernels.advance, self.num_envs, inputs, outputs, adjoint)

    def _launch(self, kernel: Any, size: Any, inputs: list[Any], outputs: list[Any], adjoint: bool) -> None:
        gradients = {}
        if adjoint:
            gradients = {
                "adj_inputs": [_gradient(value) for value in inputs],
                "adj_outputs": [_gradient(value) for value in outputs],
                "adjoint": True,
            }
        wp.launch(kernel, size, inputs=inputs, outputs=outputs, device=self.device, record_tape=False, **gradients)


def _gradient(value: Any) -> Any:
    """As Warp wants it: the array of gradients, or None, or for a number the number."""
    return value.grad if isinstance(value, wp.array) else value


class _Replay:
    """Launches that are captured at the second call and replayed from then on."""

    def __init__(self, work: Callable[[], None], device: Any, capture: bool) -> None:
        self.work, self.device, self.capture = work, device, capture
        self.graph: Any = None
        self.warm = False

    def __call__(self) -> None:
        if self.capture and self.warm and self.graph is None:
            # torch works on the default stream of a GPU unless told otherwise, and that stream cannot be captured.
            stream = wp.ScopedStream(wp.Stream(self.device)) if self.device.is_cuda else nullcontext()
            with stream, wp.ScopedCapture(self.device) as capture:
                self.work()
            self.graph = capture.graph
        if self.graph is not None:
            wp.capture_launch(self.graph)
        else:
            self.work()  # the first time also loads the kernels, which a capture may not
            self.warm = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Warp reports neither devices nor compiled modules: its log level is process-wide, so put it back."""
    level = wp.config.log_level
    wp.config.log_level = max(level, wp.LOG_WARNING)
    try:
        yield
    finally:
        wp.config.log_level = level
