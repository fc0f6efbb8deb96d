"""Groups of tasks, and the methods that are compared on them."""

from __future__ import annotations

from dataclasses import dataclass

#: By key, in the order of tables and charts: name and colour.
METHODS: dict[str, tuple[str, str]] = {
    "pwm": ("PWM", "#2f6db3"),
    "pwm_joint": ("PWM, one model of all tasks", "#4fa3a0"),
    "pwm_cloned": ("PWM from a clone", "#7fb2e5"),
    "tdmpc2": ("TD-MPC2, planning", "#c77700"),
    "tdmpc2_prior": ("TD-MPC2, no planning", "#7b5ea7"),
    "iql": ("IQL", "#2a9d9d"),
    "shac": ("SHAC", "#b3365b"),
    "sac": ("SAC", "#3a9e6e"),
    "ppo": ("PPO", "#8c5a3c"),
    "cloning_half": ("cloning of the better half", "#5b7f1d"),
    "cloning_all": ("cloning of all", "#a3b86c"),
    "random": ("random actions", "#6b737d"),
}
#: Of an offline group: every method's best policy is that of so many evaluations, of so many episodes in each task.
EVALUATIONS, EVAL_EPISODES = 3, 5
#: Of a training of SAC whose steps are data: its score is that of its last episodes.
SAC_EPISODES = 5
MINI = (
    *("walker-stand", "walker-walk", "reacher-easy", "cartpole-swingup", "cup-catch", "finger-spin"),
    *("mw-drawer-close", "mw-faucet-open", "mw-window-open", "mw-reach", "mw-button-press", "mw-door-open"),
)


@dataclass(frozen=True)
class Group:
    """Tasks on which the same methods are compared.

    Args:
        name: of the group, in options, folders and files.
        title: of its page.
        tasks: their names; an offline group may be run on others.
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
            "twelve tasks of DMControl and Meta-World, offline",
            MINI,
            (
                *("pwm", "pwm_joint", "pwm_cloned", "tdmpc2", "tdmpc2_prior", "iql", "sac"),
                *("cloning_half", "cloning_all", "random"),
            ),
            "DMControl: return / 1000, Meta-World: success rate",
            offline=True,
            notes=(
                "All methods learn from one data set, whose observations are standardised per task, and each task by "
                "itself. PWM and TD-MPC2 also play in rounds of as many episodes, with the same noise, and train on "
                "with the same share of them in each batch; their models have as many updates of as many sequences, "
                "TD-MPC2's of its published 3 steps. What uses no rounds has the data alone.",
                "PWM begins with a random policy: no clone, no behaviour term (preset=mini). “PWM, one model of all "
                "tasks” is the same with a world model of one task's size for all of them, and as many updates as "
                "they have together. “PWM from a clone” is the quickstart's form (preset=make_quickstart): one model, "
                "no rounds. TD-MPC2 has its published losses (rho=0.5) and a small planner, which also plays in its "
                "rounds. IQL has its published settings, but for the scale of the rewards and the number of updates.",
                "The last policies count. The best one is, for every method, that of "
                f"{EVALUATIONS} evaluations of {EVAL_EPISODES} episodes on seeds apart from those of the score: of PWM "
                "and TD-MPC2 within the last round, the first before it, of the others along the whole training. "
                "TD-MPC2's are of its policy prior, without planning.",
                f"SAC is what collected the data of DMControl's tasks: the mean of the last {SAC_EPISODES} episodes of "
                "that one training, as they were played, with its exploration; no deterministic evaluation of it is "
                "stored. It has as many env steps as the data have transitions.",
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
