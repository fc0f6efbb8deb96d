"""The runs of a plan: methods, tasks and seeds of a group, each run with its script and settings."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning.groups import METHODS, Group
from benchmarks.learning.jobs import Job
from torchrl_pwm.data import EpisodeStore

#: The script of each online method.
SCRIPTS = {
    "pwm": "examples/pwm_simulator.py",
    "shac": "examples/shac_simulator.py",
    "tdmpc2": "examples/tdmpc2_online.py",
    "sac": "benchmarks/learning/methods/sac.py",
    "ppo": "benchmarks/learning/methods/ppo.py",
}
#: Offline, the run that a method's numbers are in.
RUNS = {
    "pwm": "pwm",
    "cloning": "pwm",
    "random": "pwm",
    "pwm_plain": "pwm_plain",
    "pwm_tdmpc2": "pwm_tdmpc2",
    "tdmpc2": "tdmpc2",
    "tdmpc2_prior": "tdmpc2_prior",
}
#: The run whose world model another one uses.
MODELS = {"pwm_plain": "pwm", "pwm_tdmpc2": "tdmpc2", "tdmpc2_prior": "tdmpc2"}
#: Where a run leaves its world model.
MODEL_FILES = {"pwm": Path("world_model") / "world_model.pt", "tdmpc2": Path("model") / "model.pt"}
_EPISODES = 10


@dataclass(frozen=True)
class Plan:
    """Methods, tasks and seeds of a group that are to be run.

    Args:
        group: the group.
        methods, tasks, seeds: those of it that are wanted.
        folder: of the runs, ``runs/suite/<group>``.
        data: folder of the data set of an offline group.
        updates: of each world model of an offline group.
        batch_size: sequences of each of these updates.
        slice_len: transitions of a sequence.
        episodes: of the final evaluation in each task.
        overrides: settings of the scripts, ``key=value`` for all methods or ``method:key=value`` for one.
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
    overrides: tuple[str, ...] = ()

    def jobs(self) -> list[Job]:
        """The runs; seed by seed, so that an unfinished comparison has every method.

        Raises:
            FileNotFoundError, ValueError: if the data are not there or not of the tasks, or nothing is to be run.
            ImportError: if the simulator is not installed.
        """
        return list(_offline_jobs(self) if self.group.offline else _online_jobs(self))

    def overrides_of(self, method: str) -> list[str]:
        """The settings that the command line gives for a method.

        Raises:
            ValueError: if a setting is for a method that there is none of.
        """
        chosen = []
        for override in self.overrides:
            head, _, rest = override.partition(":")
            if "=" in head:
                chosen.append(override)
            elif head not in METHODS:
                raise ValueError(
                    f"{override!r} is for the method {head!r}, which there is none of: expected key=value, or "
                    f"method:key=value with one of {', '.join(METHODS)}"
                )
            elif head == method:
                chosen.append(rest)
        return chosen


def _online_jobs(plan: Plan) -> Iterator[Job]:
    """A run for each method, task and seed. Random actions, none and a controller are evaluated at the end of each."""
    family = plan.group.family
    if family == "newton" and importlib.util.find_spec("newton") is None:
        raise ImportError(
            f"the group {plan.group.name} needs newton, which is not installed here and is left out; "
            'pip install "torchrl-pwm[newton]"'
        )
    runs = dict.fromkeys("tdmpc2" if method == "tdmpc2_prior" else method for method in plan.methods)
    methods = [method for method in runs if method in SCRIPTS]
    if not methods:
        raise ValueError(f"random actions are evaluated beside another method: name one of {', '.join(SCRIPTS)} too")
    episodes = [] if plan.episodes is None else [f"evaluation.episodes={plan.episodes}"]
    for seed in plan.seeds:
        for task in plan.tasks:
            # Some families have a configuration for each task, others one for all.
            env = [f"env={family}", f"env.task={task}"] if "/" in family else [f"env={family}/{task}"]
            for method in methods:
                yield Job(
                    name=f"{method}/{task}/{seed}",
                    script=SCRIPTS[method],
                    settings=(*env, f"seed={seed}", *episodes, *plan.overrides_of(method)),
                    folder=plan.folder.absolute() / method / task / f"seed-{seed}",
                )


def _offline_jobs(plan: Plan) -> Iterator[Job]:
    """PWM and TD-MPC2 on all tasks, for each seed, with world models of one size, data and number of updates."""
    data = _check_data(plan)
    chosen = [RUNS[method] for method in plan.methods]
    wanted = dict.fromkeys([*(MODELS[run] for run in chosen if run in MODELS), *chosen])
    budget = {"iterations": plan.updates, "batch_size": plan.batch_size, "slice_len": plan.slice_len}
    for seed in plan.seeds:
        folders = {run: (plan.folder / run / f"seed-{seed}").absolute() for run in RUNS.values()}
        models = {run: folders[source] / MODEL_FILES[source] for run, source in MODELS.items()}
        common = [
            f"task=[{','.join(plan.tasks)}]",
            f"seed={seed}",
            # Episodes of its own for every seed, the same for all methods that run one env at a time.
            f"evaluation.seed={1000 + 100 * seed}",
            f"evaluation.episodes={plan.episodes or _EPISODES}",
            "threads=1",
        ]
        opened = ["data=open", f"data.root={data}"]
        # What made the quickstart, without its rounds: the methods are to have equal data.
        pwm = ["preset=make_quickstart", *opened, *common, "rounds.count=0", "evaluation.film=0", "workers=1"]
        settings = {
            "pwm": [*pwm, *(f"world_model.{key}={value}" for key, value in budget.items())],
            # As published: from a random policy, which nothing holds near the data.
            "pwm_plain": [
                *(*pwm, f"checkpoint={models['pwm_plain']}", "evaluation.baselines=null"),
                *("extraction.warm_start.behavior_updates=0", "loss.behavior_coef=0"),
            ],
            "pwm_tdmpc2": [*pwm, f"checkpoint={models['pwm_tdmpc2']}", "evaluation.baselines=null"],
            "tdmpc2": [
                *("model=small", *opened, *common, "training.normalize_observations=true"),
                *("training.eval_interval=500", "training.eval_episodes=5"),
                *(f"training.{key}={value}" for key, value in budget.items()),
            ],
            "tdmpc2_prior": [
                *("model=small", "planner=small", f"checkpoint={models['tdmpc2_prior']}"),
                *(*common, "plan=false"),
            ],
        }
        for run in wanted:
            yield Job(
                name=f"{run}/{seed}",
                script=f"examples/{'pwm_mt80' if run.startswith('pwm') else 'tdmpc2_mt80'}.py",
                settings=(*settings[run], *plan.overrides_of(run)),
                folder=folders[run],
                needs=(models[run],) if run in MODELS else (),
            )


def _check_data(plan: Plan) -> Path:
    """The data set of the plan, which has all its tasks."""
    if plan.data is None or not (plan.data / "manifest.json").exists():
        raise FileNotFoundError(
            f"The group {plan.group.name} learns from episodes of {', '.join(plan.tasks)}: expected the folder of an "
            f"EpisodeStore with --data, found {'none' if plan.data is None else plan.data}. "
            "`python examples/make_quickstart.py folder=runs/quickstart` makes it within about two hours, and then "
            "--data runs/quickstart/data"
        )
    data = plan.data.absolute()
    EpisodeStore(data).select(list(plan.tasks))
    return data
