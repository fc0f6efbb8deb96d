"""Newton's Featherstone solver as one differentiable torch function per control step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import newton
import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchrl_pwm.envs.simulators.newton.contact import GroundContact
from torchrl_pwm.envs.simulators.newton.models import Robot

__all__ = ["NewtonPhysics"]


class NewtonPhysics:
    """N copies of a robot, advanced together by one control step at a time.

    The state stays with the caller, as torch tensors: joint positions q [N, Q] and velocities v [N, D]. Actions are
    held during the step. The gradient of a step is that of a second simulation of it, from its start, on a tape: a
    step keeps nothing but q, v and the forces of the motors, so that memory does not grow with the substeps.

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
        self.device, self.substeps, self.dt, self.capture = device, substeps, dt, capture
        with _quiet():
            wp.init()
            robot = make_robot()
            self.warp_device = wp.device_from_torch(device)
            worlds = newton.ModelBuilder(up_axis=newton.Axis.Z, gravity=robot.builder.gravity)
            worlds.replicate(robot.builder, num_envs)
            self.model = worlds.finalize(device=self.warp_device, requires_grad=requires_grad)
            # A tape reads the mass matrix and the Jacobian of a solver when it runs backwards, so a solver may write
            # them but once in a control step: at its first substep, which is where its count is a multiple of these.
            self.interval = substeps // refreshes
            self.solvers = [
                newton.solvers.SolverFeatherstone(self.model, update_mass_matrix_interval=self.interval)
                for _ in range(refreshes)
            ]
            self.contact = (
                GroundContact(robot.builder, robot.spheres, robot.ground, num_envs, self.warp_device)
                if robot.spheres
                else None
            )
            self._forward = _Simulation(self, requires_grad=False)
            self._backward = _Simulation(self, requires_grad=True) if requires_grad else None
        self._drive = torch.zeros(len(robot.motors), robot.builder.joint_dof_count)
        for motor, (dof, strength) in enumerate(robot.motors.items()):
            self._drive[motor, dof] = strength
        self._drive = self._drive.to(device)

    def step(self, q: Tensor, v: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [N, Q] and velocities [N, D] one control step later, with ``actions`` [N, A] in [-1, 1]."""
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
        """Positions and velocities one control step later, without a graph, for joint forces f [N, D]."""
        with self._stream():
            return self._forward.run(q, v, f)

    def backward(self, q: Tensor, v: Tensor, f: Tensor, dq: Tensor, dv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, v and f from those of the two results of :meth:`forward`."""
        assert self._backward is not None
        with self._stream():
            return self._backward.differentiate(q, v, f, dq, dv)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, f: Tensor, physics: NewtonPhysics) -> tuple[Tensor, Tensor]:
        ctx.physics = physics
        ctx.save_for_backward(q, v, f)
        return physics.forward(q, v, f)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        return (*ctx.physics.backward(*ctx.saved_tensors, dq, dv), None)


class _Simulation:
    """The arrays of one control step, and its launches.

    With ``requires_grad`` every substep has arrays of its own, as a tape needs; without, two states take turns.
    """

    def __init__(self, physics: NewtonPhysics, *, requires_grad: bool) -> None:
        self.physics = physics
        model, substeps = physics.model, physics.substeps
        copies = substeps if requires_grad else 1
        states = [model.state(requires_grad=requires_grad) for _ in range(copies + 1)]
        self.states = [states[i % len(states)] for i in range(substeps + 1)]
        self.applied = wp.zeros_like(model.joint_qd, requires_grad=requires_grad)
        controls = [model.control(requires_grad=requires_grad) for _ in range(copies)]
        self.controls = [controls[i % copies] for i in range(substeps)]
        if physics.contact is None:
            for control in controls:
                control.joint_f = self.applied
            self.buffers = []
        else:
            buffers = [physics.contact.buffers(requires_grad) for _ in range(copies)]
            self.buffers = [buffers[i % copies] for i in range(substeps)]
        # What the captured launches read and write: gradients of the results, and of q, v and f.
        self.seeds = [wp.zeros_like(array, requires_grad=False) for array in self._results()]
        self.gradients = [wp.zeros_like(array, requires_grad=False) for array in self._inputs()]
        self.graph: Any = None
        self.warm = False

    def run(self, q: Tensor, v: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        self._launch(self._simulate, q, v, f)
        next_q, next_v = map(_copy, self._results(), (q, v))
        return next_q, next_v

    def differentiate(self, q: Tensor, v: Tensor, f: Tensor, dq: Tensor, dv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for seed, value in zip(self.seeds, (dq, dv)):
            _assign(seed, value)
        self._launch(self._simulate_and_differentiate, q, v, f)
        dq, dv, df = map(_copy, self.gradients, (q, v, f))
        return dq, dv, df

    def _inputs(self) -> tuple[Any, ...]:
        return self.states[0].joint_q, self.states[0].joint_qd, self.applied

    def _results(self) -> tuple[Any, ...]:
        return self.states[-1].joint_q, self.states[-1].joint_qd

    def _simulate(self) -> None:
        physics = self.physics
        newton.eval_fk(physics.model, self.states[0].joint_q, self.states[0].joint_qd, self.states[0])
        for solver in physics.solvers:
            solver._step = 0
        for index, control in enumerate(self.controls):
            before, after = self.states[index], self.states[index + 1]
            if physics.contact is not None:
                physics.contact(physics.model, before, self.applied, self.buffers[index], control.joint_f)
            solver = physics.solvers[index // physics.interval]
            solver.step(before, after, control, None, physics.dt / len(self.controls))

    def _simulate_and_differentiate(self) -> None:
        # A tape of this step alone: one that outlives it would read the mass matrix of a later step.
        tape = wp.Tape()
        with tape:
            self._simulate()
        for result, seed in zip(self._results(), self.seeds):
            wp.copy(result.grad, seed)
        tape.backward()
        for gradient, array in zip(self.gradients, self._inputs()):
            wp.copy(gradient, array.grad)
        tape.zero()  # the arrays are used again

    def _launch(self, work: Callable[[], None], *values: Tensor) -> None:
        if self.physics.capture and self.warm and self.graph is None:
            self.graph = self._captured(work)
        for array, value in zip(self._inputs(), values):
            _assign(array, value)
        if self.graph is not None:
            wp.capture_launch(self.graph)
        else:
            work()  # the first time also allocates, which a capture may not
            self.warm = True

    def _captured(self, work: Callable[[], None]) -> Any:
        device = self.physics.warp_device
        # torch works on the default stream of a GPU unless told otherwise, and that stream cannot be captured.
        stream = wp.ScopedStream(wp.Stream(device)) if device.is_cuda else nullcontext()
        with stream, wp.ScopedCapture(device) as capture:
            work()
        return capture.graph


def _assign(array: Any, value: Tensor) -> None:
    wp.copy(array, wp.from_torch(value.detach().contiguous().view(-1), dtype=wp.float32, requires_grad=False))


def _copy(array: Any, like: Tensor) -> Tensor:
    return wp.to_torch(array, requires_grad=False).view_as(like).clone()


@contextmanager
def _quiet() -> Iterator[None]:
    """Warp reports neither devices nor compiled modules: its log level is process-wide, so put it back."""
    level = wp.config.log_level
    wp.config.log_level = max(level, wp.LOG_WARNING)
    try:
        yield
    finally:
        wp.config.log_level = level
