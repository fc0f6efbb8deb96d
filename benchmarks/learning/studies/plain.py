"""Plain extraction from random policies with warm rounds, and what each part of it is worth: one setting at a time.

    python -m benchmarks.learning.studies.plain run --data runs/mini/data --tasks cup-catch cartpole-swingup
    python -m benchmarks.learning.studies.plain run --data runs/mini/data --variants default "one head" --seeds 0
    python -m benchmarks.learning.studies.plain report                 # benchmarks/results/plain.{md,csv,png}

Each run is ``torchrl-pwm mt80 preset=grounded`` of one task: a world model of its own from recorded episodes, a policy
from nothing, and rounds. Finished runs are skipped, interrupted ones go on. The policy of that round counts which did
best on start states of the rounds' own; its score is from others, which neither training nor rounds have seen.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.jobs import Job, study_parser
from benchmarks.learning.results import axes_of_tasks, markdown_table, write_csv
from benchmarks.learning.runner import add_engine, chosen_engine, complete
from benchmarks.machine import processor
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import MT80
from torchrl_pwm.runs.cli import user_errors

DEFAULT = "default"
#: What differs from the default, which is preset=grounded: settings with another world model,
MODELS: dict[str, tuple[str, ...]] = {
    "dynamics as published": ("model.residual=false", "model.encoder_norm=false"),
    "no norm in the encoder": ("model.encoder_norm=false",),
    "no decoder": ("model.decoder=false",),
    "one head": ("model.num_heads=1",),
    "two heads": ("model.num_heads=2",),
    "each head on all sequences": ("model_loss.heads=each",),
    "ten times the reward loss": ("model_loss.reward_coef=1.0",),
    "padding not masked": ("model_loss.mask_actions=false", "loss.mask_actions=false"),
    "sequences of 8 steps": ("world_model.batch_size=256", "world_model.slice_len=8"),
    "rate of 0.001": ("model_stepper.lr=1e-3", "rounds.lr=3e-4"),
    "without SimNorm": ("model.simnorm_dim=0", "model.encoder_norm=false"),
    "half as wide": ("model.latent_dim=64", "model.encoder_units=[128]", "model.units=[128,128]"),
    "twice as wide": ("model.latent_dim=256", "model.encoder_units=[512]", "model.units=[512,512]"),
    "2000 updates": ("world_model.iterations=2000",),
}
#: and settings with the default's, of the same seed.
POLICIES: dict[str, tuple[str, ...]] = {
    "rewards in symlog space": ("extraction.loss_of=null",),
    "horizon 4": ("loss.horizon=4",),
    "horizon 8": ("loss.horizon=8",),
    "horizon 32": ("loss.horizon=32",),
    "batch of 32": ("extraction.batch_size=32",),
    "batch of 512": ("extraction.batch_size=512",),
    "cold rounds": ("rounds.warm=false",),
    "rounds without noise": ("rounds.noise=[0.0]",),
    "rounds at a third of the rate": ("rounds.lr=1e-4",),
    "one rate of the actor in all rounds": ("rounds.actor_lr=null",),
    "critics of imagination alone": ("rounds.critic_sequences=0",),
    "all rounds alike": ("rounds.newest=null",),
    "recorded start states alone": ("extraction.stepper_of=null",),
    "rollouts go on": ("extraction.stepper_of=null", "stepper.continued=0.75", "stepper.critic_iterations=4"),
    "encoder fixed in rounds": ("model_stepper.encoder_lr_scale=0",),
}
VARIANTS = {DEFAULT: (), **MODELS, **POLICIES}
_HEAD = (
    "task",
    "variant",
    "policy that counts, mean (each seed)",
    "after each round, mean",
    "data, mean return (best)",
)
_HEAD += ("exploited",)
_PAGE = """# Plain extraction from nothing, one setting at a time

`python -m benchmarks.learning.studies.plain run --data DATA --tasks ...` and `report`, {made}; {machine}; one thread a
run, no GPU. A world model of one task from recorded episodes (`preset=mini` collects them), a policy from random
weights, with neither clone nor behaviour term, {rounds} warm rounds; {minutes:.0f} minutes a run.

Normalised score in 10 episodes of each seed: return / 1000 for DMControl, success at the last step for Meta-World,
whose returns stand beside it. After each round, from round 0 whose model knows the data alone, the last policy of its
extraction was evaluated in 10 episodes on **other** start states; the round that did best there counts (of equal ones
the last), and the score is that of its policy on start states that chose nothing. Data: mean return of the recorded
episodes, and that of the best one. Exploited: policies that count of which the trust probe says so.

{table}

![score by round](plain.png)
"""


def make_jobs(
    folder: Path, data: Path, tasks: Sequence[str], variants: Sequence[str], seeds: Sequence[int]
) -> list[Job]:
    """The runs, seed by seed; the default first.

    Raises:
        FileNotFoundError, ValueError: if the data are not there, or not of the tasks.
    """
    EpisodeStore(data).select(list(tasks))
    common = ["preset=grounded", "data=open", f"data.root={data.absolute()}", "evaluation.baselines=null"]
    common += ["evaluation.film=0", "workers=1", "threads=1"]
    jobs = []
    for seed in seeds:
        for variant in sorted(variants, key=list(VARIANTS).index):
            for task in tasks:
                model = _place(folder, task, DEFAULT, seed) / "world_model" / "world_model.pt"
                given = variant in POLICIES
                settings = [f"task={task}", f"seed={seed}", *VARIANTS[variant]]
                jobs.append(
                    Job(
                        name=f"{task}/{variant}/{seed}",
                        script="examples/pwm_mt80.py",
                        settings=(*common, *settings, *([f"checkpoint={model}"] if given else [])),
                        folder=_place(folder, task, variant, seed),
                        needs=(model,) if given else (),
                    )
                )
    return jobs


def _place(folder: Path, task: str, variant: str, seed: int) -> Path:
    return folder.absolute() / task / variant.replace(" ", "_") / f"seed-{seed}"


def read_run(folder: Path) -> dict[str, Any]:
    """What a finished run has to say."""
    summary = json.loads((folder / "summary.json").read_text())
    (task,) = summary["tasks"]
    rounds = json.loads((folder / "rounds.json").read_text())
    last = task["last"]
    return {
        "seed": summary["seed"],
        "score": last["score"],
        "return": last["return_mean"],
        "rounds": [each["score"] for each in rounds["rounds"] if "anew" not in each],
        "kept": rounds["kept"][task["task"]],
        "exploited": task["trust"]["exploited"],
        "line": task["trust"]["line"],
        "minutes": summary["seconds_total"] / 60,
    }


def report(folder: Path, results: Path) -> None:
    """Writes page, rows and picture of the finished runs.

    Raises:
        FileNotFoundError: if there are none.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for task in sorted(path.name for path in folder.glob("*") if path.is_dir()):
        for variant in VARIANTS:
            files = sorted(_place(folder, task, variant, 0).parent.glob("seed-*/summary.json"))
            if files:
                found[task, variant] = [read_run(file.parent) for file in files]
    if not found:
        raise FileNotFoundError(
            f"no finished run in {folder}: python -m benchmarks.learning.studies.plain run --data ..."
        )
    every = [run for runs in found.values() for run in runs]
    page = _PAGE.format(
        made=datetime.date.today().isoformat(),
        machine=processor(),
        rounds=max(len(run["rounds"]) for run in every) - 1,
        minutes=float(np.mean([run["minutes"] for run in every])),
        table=markdown_table(_HEAD, [_cells(folder, *key, runs) for key, runs in found.items()]),
    )
    rows = [
        {"task": task, "variant": variant, **run, "rounds": " ".join(f"{score:.4f}" for score in run["rounds"])}
        for (task, variant), runs in found.items()
        for run in runs
    ]
    write_csv(rows, results / "plain.csv")
    (results / "plain.md").write_text(page, encoding="utf-8")
    draw(found, results / "plain.png")
    print(page)


def _cells(folder: Path, task: str, variant: str, runs: list[dict[str, Any]]) -> list[str]:
    scores, succeeds = [run["score"] for run in runs], MT80[task].suite == "metaworld"
    each = ", ".join(f"{run['score']:.2f}" + (f" ({run['return']:.0f})" if succeeds else "") for run in runs)
    by_round = np.mean([run["rounds"] for run in runs], 0)
    exploited = sum(run["exploited"] for run in runs)
    cells = [task, variant, f"**{np.mean(scores):.2f}** ({each})", " ".join(f"{score:.2f}" for score in by_round)]
    return [*cells, _data(_place(folder, task, variant, 0).parent, task), f"{exploited} of {len(runs)}"]


def _data(variant: Path, task: str) -> str:
    """Mean return of the recorded episodes, and that of the best one."""
    job = json.loads(next(variant.glob("seed-*/job.json")).read_text())
    store = EpisodeStore(next(entry.partition("=")[2] for entry in job["settings"] if entry.startswith("data.root=")))
    (rows,) = store.select([task])
    episodes = store.returns[rows.start : rows.stop].reshape(-1, MT80[task].episode_length // store.row_length).sum(1)
    shown = f"{episodes.mean():.0f} ({episodes.max():.0f})"
    return shown if rows.success_mean is None else f"{shown}, success {rows.success_mean:.2f}"


def draw(found: dict[tuple[str, str], list[dict[str, Any]]], file: Path) -> None:
    """The score after each round, and as a diamond that of the policy that counts, of every seed of every variant."""
    tasks = list(dict.fromkeys(task for task, _ in found))
    figure, row = axes_of_tasks(tasks, "rounds")
    for axes, task in zip(row, tasks):
        for number, (variant, runs) in enumerate((key[1], runs) for key, runs in found.items() if key[0] == task):
            for run in runs:
                label = variant if run is runs[0] else None
                axes.plot(run["rounds"], ".-", color=f"C{number}", alpha=0.6, label=label)
                axes.plot(run["kept"], run["score"], "D", color=f"C{number}", markeredgecolor="k")
        axes.set_ylim(-0.03, 1.03)
        axes.legend(fontsize=7, loc="lower right")
    figure.savefig(file, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = study_parser("plain", __doc__)
    parser.add_argument("--data", type=Path, help="folder of the recorded episodes")
    parser.add_argument("--tasks", nargs="+", default=["cartpole-swingup", "cup-catch", "mw-window-open"])
    parser.add_argument("--variants", nargs="+", default=[DEFAULT], choices=list(VARIANTS))
    add_engine(parser)
    options = parser.parse_args(arguments)
    with user_errors():
        if options.action == "report":
            report(options.folder, options.results)
            return
        if options.data is None:
            parser.error("--data: the folder of the recorded episodes")
        jobs = make_jobs(options.folder, options.data, options.tasks, options.variants, options.seeds)
        complete(jobs, chosen_engine(options), options.folder)


if __name__ == "__main__":
    main()
