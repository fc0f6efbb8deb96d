"""Groups of tasks, and the methods that are compared on them."""

from __future__ import annotations

from dataclasses import dataclass

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
        name: of the group, in options, folders and files.
        title: of its page.
        tasks: their names; of an offline group, those of the quickstart.
        methods: keys of :data:`METHODS`.
        score: definition of the normalised score.
        offline: whether all methods learn from one data set, else from their own steps.
        family: configurations of the envs, ``conf/env/<family>``, that an online group's tasks are.
        scale: a score is return / scale; None: it is relative to random actions and the best there is.
        notes: remarks on its page.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    score: str
    offline: bool = False
    family: str = ""
    scale: float | None = None
    notes: tuple[str, ...] = ()

    def check(self, methods: tuple[str, ...], tasks: tuple[str, ...]) -> None:
        """Raises ValueError for a method that the group lacks, or a task where the tasks are fixed."""
        for wanted, known in ((methods, self.methods), (tasks, () if self.offline else self.tasks)):
            if known and (unknown := [name for name in wanted if name not in known]):
                raise ValueError(f"the group {self.name} has {', '.join(known)}, not {', '.join(unknown)}")


def groups() -> dict[str, Group]:
    """All groups by name."""
    swing = "(return - the better of random actions and none) / (hand-written controller - the same)"
    walk = "(return - the better of random actions and none) / (the best method's mean - the same)"
    online = ("pwm", "tdmpc2", "tdmpc2_prior", "shac", "sac", "ppo", "random")
    known = (
        Group(
            "mini",
            "eight tasks of DMControl and Meta-World, offline",
            load_quickstart().tasks,
            ("pwm", "pwm_plain", "pwm_tdmpc2", "tdmpc2", "tdmpc2_prior", "cloning", "random"),
            "DMControl: return / 1000, Meta-World: success rate",
            offline=True,
            notes=(
                "All methods learn from one data set, and from nothing else. World models have one size, the same "
                "number of updates, batch and sequence length; observations are standardised per task for all. PWM's "
                "policies begin as a clone of the better half of the data, which a behaviour term keeps them near "
                "(preset=quickstart). TD-MPC2 has its published losses (rho=0.5) and nothing of the kind; its planner "
                "is a small one.",
                "The best policy is that of PWM's evaluations of 8 episodes every 50 updates, of as many of behaviour "
                "cloning, and of TD-MPC2's of 5 episodes of each task every 500 updates, without planning.",
                "“PWM without cloning” has neither clone nor behaviour term, as published.",
            ),
        ),
        Group(
            "closed_form",
            "analytic simulators, online",
            ("cartpole_swingup", "double_pendulum"),
            online,
            swing,
            family="analytic",
            notes=(
                "Every method has its own settings for these tasks and its own number of env steps; the curves and the "
                "tables at equal steps and at equal minutes compare them along the way.",
            ),
        ),
        Group(
            "newton",
            "robots simulated by Newton, online",
            ("ant", "hopper"),
            online,
            walk,
            family="newton",
            notes=(
                "There is no hand-written controller here: a score of 1 is the best method's mean, not a solved task.",
                "Of the methods only SHAC's settings, and on the ant PWM's, were made for these robots.",
            ),
        ),
        Group(
            "dm_control",
            "two tasks of DMControl, online",
            ("cartpole-swingup", "walker-stand"),
            ("tdmpc2", "tdmpc2_prior", "random"),
            "return / 1000",
            family="task/dm_control",
            scale=1000.0,
            notes=("One env, action repeat 2 as in TD-MPC2's runs, so that an env step here is two of the simulator.",),
        ),
    )
    return {group.name: group for group in known}
