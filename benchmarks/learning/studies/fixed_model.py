"""Policies from nothing inside a world model that stays as it is: how soon, and what horizon and batch are worth.

    python -m benchmarks.learning.studies.fixed_model run --model MODEL --data DATA --tasks mw-reach mw-drawer-close
    python -m benchmarks.learning.studies.fixed_model report       # benchmarks/results/fixed_model.{md,csv,png}

MODEL is a ``world_model.pt`` whose training saw own episodes of policies, so that what is earned inside it is earned
outside; DATA has the start states. Each run is plain extraction from random weights, without rounds, clone or behaviour
term: ``preset=mini`` with ``rounds.count=0``. One setting differs from the default. Finished runs are skipped,
interrupted ones go on. The last policy counts.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.jobs import Job, study_parser
from benchmarks.learning.results import axes_of_tasks, markdown_table, write_csv
from benchmarks.learning.runner import add_engine, chosen_engine, complete
from benchmarks.machine import processor
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import MT80
from torchrl_pwm.evaluation import read_metrics
from torchrl_pwm.evaluation.curves import Series
from torchrl_pwm.runs.cli import user_errors
from torchrl_pwm.runs.policies import policy_file

UPDATES, EVERY, EPISODES = 200, 25, 10
DEFAULT = "default"  # horizon 16, batches of 128
VARIANTS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "horizon 1": ("loss.horizon=1",),
    "horizon 4": ("loss.horizon=4",),
    "horizon 8": ("loss.horizon=8",),
    "horizon 32": ("loss.horizon=32",),
    "batches of 32": ("extraction.batch_size=32",),
    "batches of 512": ("extraction.batch_size=512",),
}
Runs = Mapping[tuple[str, str], Sequence[dict[str, Any]]]
_SHOWN = (50, 100, UPDATES)
_HEAD = (
    "task",
    "setting",
    *(f"return after {updates}" for updates in _SHOWN),
    "score at the end, each seed",
    "seconds",
)
_PAGE = """# From nothing in a model that stays as it is: horizon and batch

`python -m benchmarks.learning.studies.fixed_model run --model MODEL --data DATA --tasks ...` and `report`, {made};
{machine}; one thread a run, no GPU. {updates} updates of plain PWM from random weights in one frozen world model that
saw its tasks' recorded episodes and own ones of other policies
([how it was made](plain_trials.md#from-nothing-once-more)); no rounds, no clone, no behaviour term, start states of the
data. One setting differs from the default, which has horizon 16 and
batches of 128 start states.

Return along the way: {episodes} episodes each, mean of the seeds ({seeds}). Score: of the last policy, in {episodes}
others, success at the last step for Meta-World, return / 1000 for DMControl. Seconds: of the updates, beside what else
ran.

{table}

![return over updates](fixed_model.png)

Published beside it (curves of the paper's repository): on DFlex's ant, last policies, batches of 32, 128, 512 and 1024
start states reach 9440, 5184, 7345 and 3432 (three seeds each); multi-task policies in a world model of horizon 3 have
0.722 (29 tasks of MT30) and 0.765 (77 of MT80), of horizon 16 0.768 and 0.818.
"""


def make_jobs(
    folder: Path, model: Path, data: Path, tasks: Sequence[str], variants: Sequence[str], seeds: Sequence[int]
) -> list[Job]:
    """The runs, seed by seed.

    Raises:
        FileNotFoundError, ValueError: if model or data are not there, or not of the tasks.
    """
    EpisodeStore(data).select(list(tasks))
    if not model.is_file():
        raise FileNotFoundError(f"no world model in {model}: give the world_model.pt of a run")
    settings = ["preset=mini", "data=open", f"data.root={data.absolute()}", f"checkpoint={model.absolute()}"]
    settings += ["rounds.count=0", f"extraction.iterations={UPDATES}", f"extraction.eval_interval={EVERY}"]
    settings += [f"extraction.eval_episodes={EPISODES}", f"evaluation.episodes={EPISODES}"]
    settings += ["evaluation.baselines=null", "evaluation.film=0", "workers=1", "threads=1"]
    return [
        Job(
            name=f"{task}/{variant}/{seed}",
            script="examples/pwm_mt80.py",
            settings=(*settings, f"task={task}", f"seed={seed}", *VARIANTS[variant]),
            folder=_place(folder, task, variant) / f"seed-{seed}",
        )
        for seed in seeds
        for variant in sorted(variants, key=list(VARIANTS).index)
        for task in tasks
    ]


def _place(folder: Path, task: str, variant: str) -> Path:
    return folder.absolute() / task / variant.replace(" ", "_")


def read_run(folder: Path, task: str) -> dict[str, Any]:
    """Return and success along the way, score at the end and the seconds of a finished run."""
    summary = json.loads((folder / "summary.json").read_text())
    metrics = read_metrics(policy_file(folder, task, summary["seed"]).parent)
    (found,) = summary["tasks"]
    return {
        "seed": summary["seed"],
        "score": found["last"]["score"],
        "return": found["last"]["return_mean"],
        "seconds": float(metrics["training_seconds"][1][-1]),
        "real_return": metrics["real_return"],
    }


def report(folder: Path, results: Path) -> None:
    """Writes page, rows and picture of the finished runs.

    Raises:
        FileNotFoundError: if there are none.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for task in sorted(path.name for path in folder.glob("*") if path.name in MT80.names):
        for variant in VARIANTS:
            files = sorted(_place(folder, task, variant).glob("seed-*/summary.json"))
            if files:
                found[task, variant] = [read_run(file.parent, task) for file in files]
    if not found:
        raise FileNotFoundError(f"no finished run in {folder}: python -m {__spec__.name} run --model ... --data ...")
    page = _PAGE.format(
        made=datetime.date.today().isoformat(),
        machine=processor(),
        updates=UPDATES,
        episodes=EPISODES,
        seeds=", ".join(map(str, sorted({run["seed"] for runs in found.values() for run in runs}))),
        table=markdown_table(_HEAD, [_cells(*key, runs) for key, runs in found.items()]),
    )
    kept = ("seed", "score", "return", "seconds")
    rows = [
        {"task": task, "setting": variant, **{key: run[key] for key in kept}, **_along(run["real_return"])}
        for (task, variant), runs in found.items()
        for run in runs
    ]
    write_csv(rows, results / "fixed_model.csv")
    (results / "fixed_model.md").write_text(page, encoding="utf-8")
    draw(found, results / "fixed_model.png")
    print(page)


def _along(returns: Series) -> dict[str, float]:
    """The return after some updates, for the rows."""
    return {f"return after {int(step)}": round(float(value), 1) for step, value in zip(*returns)}


def _cells(task: str, variant: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    along = [_along(run["real_return"]) for run in runs]
    returns = [np.mean([each[f"return after {step}"] for each in along]) for step in _SHOWN]
    scores = " ".join(f"{run['score']:.2f}" for run in runs)
    seconds = np.mean([run["seconds"] for run in runs])
    return [task, variant, *(f"{value:.0f}" for value in returns), scores, f"{seconds:.0f}"]


def draw(found: Runs, file: Path) -> None:
    """The real return over the updates, mean and every seed."""
    tasks = list(dict.fromkeys(task for task, _ in found))
    figure, row = axes_of_tasks(tasks, "updates")
    for axes, task in zip(row, tasks):
        for number, variant in enumerate(VARIANTS):
            curves = [run["real_return"] for run in found.get((task, variant), [])]
            for updates, returns in curves:
                axes.plot(updates, returns, color=f"C{number}", alpha=0.25, linewidth=0.8)
            if curves:
                mean = np.mean([returns for _, returns in curves], 0)
                axes.plot(curves[0][0], mean, ".-", color=f"C{number}", label=variant)
    row[0].set_ylabel(f"return of {EPISODES} episodes")
    row[-1].legend(fontsize=7, loc="lower right")
    figure.savefig(file, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = study_parser("fixed_model", __doc__)
    parser.add_argument("--model", type=Path, help="the world_model.pt of a run")
    parser.add_argument("--data", type=Path, help="folder of the recorded episodes")
    parser.add_argument("--tasks", nargs="+", default=["mw-drawer-close", "mw-faucet-open", "mw-reach"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    add_engine(parser)
    options = parser.parse_args(arguments)
    with user_errors():
        if options.action == "report":
            report(options.folder, options.results)
            return
        if options.model is None or options.data is None:
            parser.error("run needs --model and --data")
        places = options.folder, options.model, options.data
        jobs = make_jobs(*places, options.tasks, options.variants, options.seeds)
        complete(jobs, chosen_engine(options), options.folder)


if __name__ == "__main__":
    main()
