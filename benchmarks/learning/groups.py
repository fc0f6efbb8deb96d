"""Groups of tasks, and the methods that are compared on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchrl_pwm.modules import load_quickstart

#: By key, in the order of tables and charts: name and colour.
METHODS: dict[str, tuple[str, str]] = {
    "pwm": ("PWM", "#2f6db3"),
    "pwm_plain": ("PWM without cloning", "#7fb2e5"),
    "pwm_tdmpc2": ("PWM on TD-MPC2's model", "#2a9d9d"),
    "tdmpc2": ("TD-MPC2, planning", "#c77700"),
    "tdmpc2_prior": ("TD-MPC2, no planning", "#7b5ea7"),
    "shac": ("SHAC", "#b3365b"),
    "sac": ("SAC", "#3a9e6e"),
    "ppo": ("PPO", "#8c5a3c"),
    "cloning": ("behaviour cloning", "#5b7f1d"),
    "random": ("random actions", "#6b737d"),
}


@dataclass(frozen=True)
class Group:
    """Tasks on which the same methods are compared.

    Args:
        name: of the group.
        title: what it is.
        tasks: their names; of an offline group, those of the quickstart.
        methods: keys of :data:`METHODS`.
        score: what a normalised score is.
        offline: whether all methods learn from one data set, else from their own steps.
        family: of the examples' envs, ``conf/env/<family>``, that an online group's tasks are.
        scale: a score is return / scale; None: it is relative to random actions and the best there is.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    score: str
    offline: bool = False
    family: str = ""
    scale: float | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Args:
        group: the group.
        methods, tasks, seeds: those of it that are wanted.
        folder: where runs live, ``runs/suite/<group>``.
        data: folder of the data set of an offline group.
        updates: of each world model of an offline group.
        batch_size: sequences of each of these updates.
        slice_len: transitions of a sequence.
        episodes: of the final evaluation in each task.
        overrides: settings of the examples, ``key=value`` for all methods or ``method:key=value`` for one.
    """

    group: Group
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    folder: Path
    data: Path | None = None
    updates: int = 6000
    batch_size: int = 128
    slice_len: int = 8
    episodes: int | None = None
    overrides: Sequence[str] = field(default_factory=tuple)

    def overrides_of(self, method: str) -> list[str]:
        """The settings that the command line gives for a method."""
        found = []
        for override in self.overrides:
            head, _, rest = override.partition(":")
            named = "=" not in head
            if named and head not in METHODS:
                raise ValueError(
                    f"{override!r} is for the method {head!r}, which there is none of: expected key=value, or "
                    f"method:key=value with one of {', '.join(METHODS)}"
                )
            if not named:
                found.append(override)
            elif head == method:
                found.append(rest)
        return found


def groups() -> dict[str, Group]:
    """All groups by name."""
    swing = "(return - the better of random actions and none) / (hand-written controller - the same)"
    walk = "(return - the better of random actions and none) / (the best method's mean - the same)"
    online = ("pwm", "tdmpc2", "tdmpc2_prior", "shac", "sac", "ppo", "random")
    return {
        group.name: group
        for group in (
            Group(
                "mini",
                "eight tasks of DMControl and Meta-World, offline",
                load_quickstart().tasks,
                ("pwm", "pwm_plain", "pwm_tdmpc2", "tdmpc2", "tdmpc2_prior", "cloning", "random"),
                "DMControl: return / 1000, Meta-World: success rate",
                offline=True,
            ),
            Group(
                "closed_form",
                "simulators in closed form, online",
                ("cartpole_swingup", "double_pendulum"),
                online,
                swing,
                family="analytic",
            ),
            Group(*("newton", "robots simulated by Newton, online", ("ant", "hopper"), online, walk), family="newton"),
            Group(
                "dm_control",
                "two tasks of DMControl, online",
                ("cartpole-swingup", "walker-stand"),
                ("tdmpc2", "tdmpc2_prior", "random"),
                "return / 1000",
                family="task/dm_control",
                scale=1000.0,
            ),
        )
    }
