"""The runs of an offline group: PWM and TD-MPC2, with world models of one size, data and number of updates."""

from __future__ import annotations

from pathlib import Path

from benchmarks.learning.groups import Plan
from benchmarks.learning.jobs import Job

#: The run that a method's numbers are in.
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
EPISODES = 10


def check_data(plan: Plan) -> Path:
    """The data set of the plan.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if a task is not in it.
    """
    from torchrl_pwm.data import EpisodeStore

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


def offline_jobs(plan: Plan) -> list[Job]:
    """The runs of all methods and seeds; seed by seed, so that an unfinished comparison has every method.

    Raises:
        FileNotFoundError, ValueError: if the data are not there or not of the tasks.
    """
    data = check_data(plan)
    chosen = [RUNS[method] for method in plan.methods]
    wanted = dict.fromkeys([*(MODELS[run] for run in chosen if run in MODELS), *chosen])
    jobs = []
    for seed in plan.seeds:
        folders = {run: (plan.folder / run / f"seed-{seed}").absolute() for run in RUNS}
        models = {run: folders[source] / MODEL_FILES[source] for run, source in MODELS.items()}
        common = [
            f"task=[{','.join(plan.tasks)}]",
            f"seed={seed}",
            # Episodes of its own for every seed, the same for all methods that run one env at a time.
            f"evaluation.seed={1000 + 100 * seed}",
            f"evaluation.episodes={plan.episodes or EPISODES}",
            "threads=1",
        ]
        opened = ["data=open", f"data.root={data}"]
        # What made the quickstart, without its rounds: the methods are to have equal data.
        pwm = ["preset=make_quickstart", *opened, *common, "rounds.count=0", "evaluation.film=0", "workers=1"]
        budget = {"iterations": plan.updates, "batch_size": plan.batch_size, "slice_len": plan.slice_len}
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
                "model=small",
                "planner=small",
                f"checkpoint={models['tdmpc2_prior']}",
                *common,
                "plan=false",
            ],
        }
        for run in wanted:
            jobs.append(
                Job(
                    name=f"{run}/{seed}",
                    script=f"examples/{'pwm_mt80' if run.startswith('pwm') else 'tdmpc2_mt80'}.py",
                    settings=(*settings[run], *plan.overrides_of(run)),
                    folder=folders[run],
                    needs=(models[run],) if run in MODELS else (),
                )
            )
    return jobs
