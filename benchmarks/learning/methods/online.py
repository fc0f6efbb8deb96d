"""The runs of an online group: every method on every task and seed, each with its own settings for the task."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from benchmarks.learning.groups import Plan
from benchmarks.learning.jobs import Job

SCRIPTS = {
    "pwm": "examples/pwm_simulator.py",
    "shac": "examples/shac_simulator.py",
    "tdmpc2": "examples/tdmpc2_online.py",
    "sac": "benchmarks/learning/methods/sac.py",
    "ppo": "benchmarks/learning/methods/ppo.py",
}


def run_folder(folder: Path, method: str, task: str, seed: int) -> Path:
    """Where a run lives, below that of the group."""
    return folder / method / task / f"seed-{seed}"


def online_jobs(plan: Plan) -> list[Job]:
    """The runs of all methods, tasks and seeds; seed by seed, so that an unfinished comparison has every method.

    Random actions, none and a hand-written controller are evaluated at the end of every run.

    Raises:
        ImportError: if the simulator is not installed.
        ValueError: if there is nothing to run.
    """
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
    return [
        Job(
            name=f"{method}/{task}/{seed}",
            script=SCRIPTS[method],
            settings=(
                *_env(family, task),
                f"seed={seed}",
                *([] if plan.episodes is None else [f"evaluation.episodes={plan.episodes}"]),
                *plan.overrides_of(method),
            ),
            folder=run_folder(plan.folder.absolute(), method, task, seed),
        )
        for seed in plan.seeds
        for task in plan.tasks
        for method in methods
    ]


def _env(family: str, task: str) -> tuple[str, ...]:
    """Options that choose the env: some families have a file for each task, others one for all."""
    return (f"env={family}", f"env.task={task}") if "/" in family else (f"env={family}/{task}",)
