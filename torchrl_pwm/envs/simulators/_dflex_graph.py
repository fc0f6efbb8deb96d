"""DFlex's integrator and its nodes in torch's graph: one state in both modes, one backward pass, freed memory."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["GuardedIntegrator"]

_SPENT = (
    "a second backward pass through a window of DFlex, whose first emptied the tapes of its steps: the gradient would "
    "be zero, or a part of it. Add up the losses of a window and call backward() once, or roll it out again"
)
_FREED = (
    "a backward pass through a window of DFlex that was freed, since another window has begun and ended after it: call "
    "backward() before that, or ask for one longer window"
)


class GuardedIntegrator:
    """The integrator of a DFlex env, with three of its habits put right.

    - Without gradients it changes the state in place, which then still holds the action, ``joint_act``; with gradients
      the new state has zeros there. Tasks observe it: it is zero in both modes here.
    - The first backward pass through a step empties its tape, and any other gives zeros: that one raises here.
    - A step that no backward pass goes through holds its memory for good, as its tape and the graph hold each other.
      :meth:`cut` empties the tapes of the window before the last.

    Args:
        integrator: the env's own.
    """

    def __init__(self, integrator: Any) -> None:
        self._integrator = integrator
        # Steps that no backward pass has gone through yet. One may follow the cut that ends a window.
        self._present: list[_Step] = []
        self._last: list[_Step] = []

    def forward(self, model: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        reached = self._integrator.forward(model, state, *args, **kwargs)
        if reached is state:
            reached.joint_act = torch.zeros_like(reached.joint_act)
        node = reached.joint_q.grad_fn
        # A fourth argument asks for a tape that outlives a backward pass, for DFlex's own Jacobians.
        if hasattr(node, "tape") and len(args) <= 3 and not kwargs:
            self._present.append(_Step(node))
        return reached

    def cut(self) -> None:
        """Ends a window: the graph is cut at the present state."""
        if not self._present:  # a reset and then a cut end one window
            return
        for step in self._last:
            step.free()
        self._last = [step for step in self._present if step.node is not None]
        self._present = []


class _Step:
    """A node that awaits its backward pass; ``node`` is None afterwards, which also ends the circle of the two."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self._refusal = _SPENT
        node.register_prehook(self._let_through)

    def _let_through(self, gradients: tuple[Any, ...]) -> None:
        if self.node is None:
            raise RuntimeError(self._refusal)
        self.node = None

    def free(self) -> None:
        if self.node is not None:
            self.node.tape.reset()
            self.node, self._refusal = None, _FREED
