"""Numbers of a simulation that are not finite, looked for without waiting for a GPU at every step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchrl_pwm._utils.devices import is_host, readable

__all__ = ["NonFiniteWatch"]

_UNREAD = 32  # steps of a GPU that are looked at together


class _Note(NamedTuple):
    bad: Tensor  # bool [N]
    steps: Tensor | None  # [N], of their episodes; None for a start
    bad_actions: Tensor | None  # bool [N]


class NonFiniteWatch:
    """Raises the error of the first step that was not finite.

    On the CPU at once. A GPU would have to be waited for, so that its steps are looked at together, after 32 of them
    or where :meth:`read` is called; the error names the same envs and step as it would have then.
    """

    def __init__(self) -> None:
        self._notes: list[_Note] = []

    def note_start(self, bad: Tensor) -> None:
        """Notes the envs, bool [N], whose start is not finite."""
        self._note(_Note(bad, None, None))

    def note_step(self, bad: Tensor, steps: Tensor, action: Tensor) -> None:
        """Notes the envs, bool [N], that a step with these actions [N, A] left non-finite at ``steps`` [N]."""
        self._note(_Note(bad, steps, ~action.detach().isfinite().all(-1)))

    def _note(self, note: _Note) -> None:
        if readable(note.bad):
            self._notes.append(note)
            if is_host(note.bad.device) or len(self._notes) >= _UNREAD:
                self.read()

    def read(self) -> None:
        """Looks at what was noted.

        Raises:
            FloatingPointError: naming the envs and their step.
        """
        notes, self._notes = self._notes, []
        if not notes:
            return
        found = torch.stack([note.bad.any() for note in notes]).tolist()
        for note, is_bad in zip(notes, found):
            if is_bad:
                raise FloatingPointError(_explain(note))


def _explain(note: _Note) -> str:
    if note.steps is None:
        return f"the start of envs {_listed(note.bad)} is not finite: check the simulator's reset"
    assert note.bad_actions is not None
    steps, actions = note.steps[note.bad].tolist(), note.bad & note.bad_actions
    cause = (
        f"the actions of envs {_listed(actions)} were not finite already: look for a NaN in the policy"
        if actions.any()
        else "the actions were finite: the simulation is unstable there. Use smaller actions or, to end such "
        'episodes and go on, non_finite="terminate"'
    )
    return (
        f"observation or reward of envs {_listed(note.bad)} became non-finite at step {steps[:8]} of their episodes;"
        f" {cause}"
    )


def _listed(flags: Tensor) -> str:
    """Up to eight indices where ``flags`` is True."""
    indices = flags.nonzero().flatten().tolist()
    return f"{indices[:8]}{'' if len(indices) <= 8 else f' and {len(indices) - 8} more'}"
