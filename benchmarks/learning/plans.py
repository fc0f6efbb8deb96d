"""The runs of a plan: methods, tasks and seeds of a group, each run with its script and settings."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning.groups import EVAL_EPISODES, EVALUATIONS, METHODS, Group
from benchmarks.learning.jobs import Job
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.runs.cli import command_config

#: The script of each online method.
SCRIPTS = {
    "pwm": "examples/pwm_simulator.py",
    "shac": "examples/shac_simulator.py",
    "tdmpc2": "examples/tdmpc2_online.py",
    "sac": "benchmarks/learning/methods/sac.py",
    "ppo": "benchmarks/learning/methods/ppo.py",
}
#: Offline, the run that a method's numbers are in. SAC is read from the data that it collected.
RUNS = {
    **dict.fromkeys(("pwm", "cloning_all", "cloning_half", "sac", "random"), "pwm"),
    "pwm_joint": "pwm_joint",
    "pwm_cloned": "pwm_cloned",
    **dict.fromkeys(("tdmpc2", "tdmpc2_prior"), "tdmpc2"),
    "iql": "iql",
}
#: The names of what is cloned in the files of a run's baselines.
CLONES = {"cloning": "cloning_all", "cloning_top_0.5": "cloning_half"}
_OFFLINE_SCRIPTS = {
    "pwm": "examples/pwm_mt80.py",
    "pwm_joint": "examples/pwm_mt80.py",
    "pwm_cloned": "examples/pwm_mt80.py",
    "tdmpc2": "examples/tdmpc2_mt80.py",
    "iql": "benchmarks/learning/methods/iql.py",
}
#: The offline runs that learn all tasks with one model; the others have a run for each task.
_JOINT = ("pwm_joint", "pwm_cloned")
_EPISODES = 10
_POINTS = 12  # of TD-MPC2's curve before its rounds


@dataclass(frozen=True)
class Plan:
    """Methods, tasks and seeds of a group that are to be run.

    Args:
        group: the group.
        methods, tasks, seeds: those of it that are wanted.
        folder: of the runs, ``runs/suite/<group>``.
        data: folder of the data set of an offline group.
        updates: of the world model of a task of an offline group, before its rounds; one of all tasks has them for
            each.
        tdmpc2_updates: of TD-MPC2's, where they are others.
        iql_updates: of each of IQL's policies.
        batch_size: sequences of each update of a world model.
        slice_len: transitions of a sequence, but of TD-MPC2's.
        rounds: of playing and training on.
        round_updates: of the world model of a task in a round. What is None of these is as in PWM's preset.
        episodes: of the final evaluation in each task.
        overrides: settings of the scripts, ``key=value`` for all methods or ``method:key=value`` for one.
    """

    group: Group
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    folder: Path
    data: Path | None = None
    updates: int | None = None
    tdmpc2_updates: int | None = None
    iql_updates: int = 20_000
    batch_size: int | None = None
    slice_len: int | None = None
    rounds: int | None = None
    round_updates: int | None = None
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
    """A run of each method for each task, or for all together, and each seed: the same data, updates and rounds."""
    data = _check_data(plan)
    wanted = dict.fromkeys(RUNS[method] for method in plan.methods)
    for seed in plan.seeds:
        settings = _settings(plan, data, seed)
        for run in wanted:
            places = {f"{run}/{task}": task if run == "iql" else f"[{task}]" for task in plan.tasks}
            if run in _JOINT:
                places = {run: f"[{','.join(plan.tasks)}]"}
            for place, tasks in places.items():
                yield Job(
                    name=f"{place}/{seed}",
                    script=_OFFLINE_SCRIPTS[run],
                    settings=(f"task={tasks}", *settings[run], *plan.overrides_of(run)),
                    folder=(plan.folder / place / f"seed-{seed}").absolute(),
                    needs=(data,),
                )


def _settings(plan: Plan, data: Path, seed: int) -> dict[str, list[str]]:
    """The settings of each run of a seed, but for its tasks."""
    # Episodes of its own for every seed, the same for all methods that run one env at a time.
    common = [
        f"seed={seed}",
        f"evaluation.seed={1000 + 100 * seed}",
        f"evaluation.episodes={plan.episodes or _EPISODES}",
    ]
    common += [f"data.root={data}", "threads=1"]
    preset = pwm_preset()
    count = _given(plan.rounds, preset.rounds.count)
    # The preset's updates are those of one model of all its tasks.
    updates = _given(plan.updates, preset.world_model.iterations // len(preset.task))
    more = _given(plan.round_updates, preset.rounds.iterations // len(preset.task))
    batch = {
        "batch_size": _given(plan.batch_size, preset.world_model.batch_size),
        "slice_len": _given(plan.slice_len, preset.world_model.slice_len),
    }
    pwm = ["data=open", *common, "workers=1", "evaluation.film=0", "extraction.select=last"]
    pwm += [
        f"extraction.eval_episodes={EVAL_EPISODES}",
        *(f"world_model.{key}={value}" for key, value in batch.items()),
    ]
    # A round's policies are evaluated before its updates too, as are those that begin as a clone; others are not.
    along = -(-preset.extraction.iterations // EVALUATIONS)
    if count:
        along = -(-preset.rounds.policy_iterations // (EVALUATIONS - 1))
    plain = ["preset=mini", *pwm, f"extraction.eval_interval={along}", f"rounds.count={count}"]
    cloning = ["evaluation.baselines.cloning.top=1.0", "evaluation.baselines.cloning.also=[0.5]"]
    cloning.append(f"evaluation.baselines.cloning.evaluations={EVALUATIONS}")
    tasks, tdmpc2 = len(plan.tasks), _given(plan.tdmpc2_updates, updates)
    return {
        "pwm": [*plain, f"world_model.iterations={updates}", f"rounds.iterations={more}", *cloning],
        "pwm_joint": [
            *plain,
            *(f"world_model.iterations={tasks * updates}", f"rounds.iterations={tasks * more}"),
            "evaluation.baselines=null",
        ],
        "pwm_cloned": [
            *("preset=make_quickstart", *pwm, f"world_model.iterations={tasks * updates}"),
            *("rounds.count=0", "evaluation.baselines=null"),
            f"extraction.eval_interval={200 // (EVALUATIONS - 1)}",
        ],
        "tdmpc2": [
            *("model=small", "data=open", *common, "workers=1"),
            *(f"rounds.count={count}", f"rounds.iterations={more}", f"rounds.newest={preset.rounds.newest}"),
            *(f"rounds.evaluations={EVALUATIONS}", "evaluation.prior=true"),
            *("training.normalize_observations=true", "training.select=last"),
            *(f"training.iterations={tdmpc2}", f"training.batch_size={batch['batch_size']}"),
            *(f"training.eval_interval={max(tdmpc2 // _POINTS, 1)}", f"training.eval_episodes={EVAL_EPISODES}"),
        ],
        "iql": [
            *(*common, f"iterations={plan.iql_updates}", "select=last"),
            *(f"eval_interval={-(-plan.iql_updates // EVALUATIONS)}", f"eval_episodes={EVAL_EPISODES}"),
        ],
    }


@functools.cache
def pwm_preset() -> Any:
    """The configuration of PWM in an offline group."""
    return command_config("mt80", ["preset=mini"])


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _check_data(plan: Plan) -> Path:
    """The data set of the plan, which has all its tasks."""
    if plan.data is None or not (plan.data / "manifest.json").exists():
        raise FileNotFoundError(
            f"The group {plan.group.name} learns from episodes of {', '.join(plan.tasks)}: expected the folder of an "
            f"EpisodeStore with --data, found {'none' if plan.data is None else plan.data}. "
            "`torchrl-pwm mt80 preset=mini folder=runs/mini` collects it first, within a few hours, and then "
            "--data runs/mini/data"
        )
    data = plan.data.absolute()
    EpisodeStore(data).select(list(plan.tasks))
    return data
