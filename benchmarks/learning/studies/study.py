"""Ablation of the extraction, one setting at a time, on three tasks of the quickstart.

    python -m benchmarks.learning.studies.study models --run runs/quickstart  # of examples/make_quickstart.py
    python -m benchmarks.learning.studies.study run                    # resumable; every variant, task and seed
    python -m benchmarks.learning.studies.study report                 # benchmarks/results/study.{csv,png}, and a table

Every variant differs in one setting from the default, which is preset=quickstart with 150 updates, of which the last
policy counts: a choice among policies by their real returns would hide what a setting does. The variants that need
another world model compare two models that were trained alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from tqdm import tqdm

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from benchmarks.learning.jobs import RESULTS
from benchmarks.learning.results import markdown_table, write_csv
from benchmarks.learning.rows import success_and_score
from torchrl_pwm import runs
from torchrl_pwm._utils.processes import run_jobs
from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay
from torchrl_pwm.data.store.statistics import observation_statistics
from torchrl_pwm.envs import MT80
from torchrl_pwm.modules import QUICKSTART_FILE, load_quickstart, pack_quickstart
from torchrl_pwm.runs.extraction import ExtractionJob, extract_policy
from torchrl_pwm.runs.saved import read_config
from torchrl_pwm.runs.world_model import load_world_model, make_world_model, save_disagreement, train_world_model
from torchrl_pwm.trainers.disagreement import train_disagreement

TASKS = ("cartpole-swingup", "finger-spin", "mw-window-open")
SEEDS = (0, 1, 2)
DEFAULT = "default"
BUDGET = (
    "extraction.iterations=150",
    "extraction.select=last",
    "extraction.eval_interval=1000000",
    "extraction.eval_episodes=2",
    "evaluation.episodes=10",
    "progress=false",
)
NO_WARM_START = ("extraction.warm_start.behavior_updates=0", "extraction.warm_start.value_updates=0")
# name: (settings that differ, world model)
VARIANTS: dict[str, tuple[tuple[str, ...], str]] = {
    DEFAULT: ((), "quickstart"),
    "rewards in raw space": (("loss.reward_space=raw",), "quickstart"),
    "TD(0) targets": (("extraction.value_estimator=TD0",), "quickstart"),
    "bootstrap as published": (("loss.bootstrap=reference",), "quickstart"),
    "horizon 4": (("loss.horizon=4",), "quickstart"),
    "horizon 16": (("loss.horizon=16",), "quickstart"),
    "no action masks": (("loss.mask_actions=false",), "quickstart"),
    "no behaviour term": (("loss.behavior_coef=0",), "quickstart"),
    "no warm start": (NO_WARM_START, "quickstart"),
    "neither": (("loss.behavior_coef=0", *NO_WARM_START), "quickstart"),
    "disagreement penalty": (("loss.disagreement_coef=0.1",), "quickstart"),
    "no averaging": (("extraction.average=0",), "quickstart"),
    "fast critics": (("stepper.critic_lr=1e-3", "extraction.warm_start.value_updates=400"), "quickstart"),
    "no round": ((), "no_round"),
    "short training, SimNorm": ((), "simnorm"),
    "short training, Mish": ((), "mish"),
}
EXPLAINING = ("no warm start", "neither", "no averaging", "fast critics")


def settings(*overrides: str) -> Any:
    """The configuration of the quickstart preset."""
    with initialize_config_dir(str(Path(runs.__file__).parent / "conf"), version_base="1.3"):
        return compose("pwm_mt80", ["preset=quickstart", *overrides])


def make_models(run: Path, folder: Path, updates: int) -> None:
    """The world models that variants need, each in a file of the quickstart's form."""
    config = read_config(run)
    store = EpisodeStore(run / "data")
    quickstart = load_quickstart()

    def pack(model: Any, name: str) -> None:
        target = folder / name / "model.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        content = pack_quickstart(model, quickstart.starts, quickstart.behavior, task_set="mt80", source={})
        target.write_bytes(content)

    (folder / "quickstart").mkdir(parents=True, exist_ok=True)
    (folder / "quickstart" / "model.safetensors").write_bytes(QUICKSTART_FILE.read_bytes())
    replay = TDMPC2ExperienceReplay(store.root, 128, slice_len=8, tasks=list(TASKS), seed=0)
    ensemble = train_disagreement(quickstart.world_model, replay, iterations=3000, progress=True)
    save_disagreement(ensemble, folder / "quickstart" / "disagreement.pt")
    pack(load_world_model(config, run / "world_model" / "world_model.pt"), "no_round")
    for name, size in (("simnorm", 8), ("mish", 0)):
        torch.manual_seed(0)
        model = make_world_model(OmegaConf.merge(config, {"model": {"simnorm_dim": size}}))
        model.set_observation_statistics(*observation_statistics(store))
        replay = TDMPC2ExperienceReplay(store.root, 128, slice_len=8, tasks=list(TASKS), seed=0)
        train_world_model(config, folder / f"{name}_training", model, replay, iterations=updates)
        pack(model, name)


def make_jobs(folder: Path) -> list[ExtractionJob]:
    """Every variant, task and seed."""
    jobs = []
    for name, (overrides, model) in VARIANTS.items():
        config = settings(*BUDGET, *overrides)
        plain: Any = OmegaConf.to_container(config, resolve=True)
        jobs += [
            ExtractionJob(
                config=plain,
                task=task,
                seed=seed,
                folder=folder / "runs" / name / task / f"seed-{seed}",
                data=None,
                world_model=folder / model / "model.safetensors",
                threads=1,
                device="cpu",
            )
            for seed in SEEDS
            for task in TASKS
        ]
    # Seed by seed, so that an unfinished study has every variant; those that only explain others come last.
    return sorted(jobs, key=lambda job: (job.folder.parts[-3] in EXPLAINING, job.seed))


def report(folder: Path) -> None:
    """A table and a plot of all results there are."""
    rows = []
    for name in VARIANTS:
        for task in TASKS:
            files = sorted((folder / "runs" / name / task).glob("seed-*/result.json"))
            results = [json.loads(file.read_text()) for file in files]
            if results:
                returns = [float(np.mean(result["returns"])) for result in results]
                scores = [success_and_score(MT80[task], result)["score"] for result in results]
                row = {"variant": name, "task": task, "seeds": len(results)}
                row |= {
                    "return_mean": round(float(np.mean(returns)), 1),
                    "return_std": round(float(np.std(returns)), 1),
                }
                row["score_mean"] = round(float(np.mean(scores)), 3)
                row["seconds"] = round(float(np.mean([result["seconds"] for result in results])), 1)
                rows.append(row)
    RESULTS.mkdir(exist_ok=True)
    write_csv(rows, RESULTS / "study.csv")
    plot(rows, RESULTS / "study.png")
    print(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line per variant: mean and standard deviation over seeds of each task's return, and the mean change."""
    by_cell = {(row["variant"], row["task"]): row for row in rows}
    lines = []
    for name in VARIANTS:
        cells = [by_cell[name, task] for task in TASKS if (name, task) in by_cell]
        if len(cells) < len(TASKS):
            continue
        changes = [cell["return_mean"] / by_cell[DEFAULT, cell["task"]]["return_mean"] - 1 for cell in cells]
        shown = [f"{cell['return_mean']:.0f} ± {cell['return_std']:.0f}" for cell in cells]
        seeds = min(cell["seeds"] for cell in cells)
        note = "" if seeds == len(SEEDS) else f" ({seeds} seeds)"
        lines.append([f"{name}{note}", *shown, f"{np.mean(changes):+.0%}"])
    return markdown_table(["variant", *TASKS, "mean change"], lines)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Returns of every variant beside the default's, task by task."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharey=True)
    names = [name for name in VARIANTS if any(row["variant"] == name for row in rows)]
    for axes, task in zip(panels, TASKS):
        for row in (row for row in rows if row["task"] == task):
            color = "#1f4e79" if row["variant"] == DEFAULT else "#c0504d"
            place = names.index(row["variant"])
            axes.errorbar(row["return_mean"], place, xerr=row["return_std"], fmt="o", color=color, capsize=3)
            if row["variant"] == DEFAULT:
                axes.axvline(row["return_mean"], color=color, linewidth=0.8, linestyle="--")
        axes.set_title(task, loc="left")
        axes.set_xlabel("return (mean and spread over seeds)")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.savefig(file, dpi=120)


def _extract(job: ExtractionJob, report: Callable[[], object]) -> None:
    extract_policy(job)
    report()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("models", "run", "report"))
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="folder of the quickstart's own run")
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--updates", type=int, default=4000, help="of the models trained for the SimNorm comparison")
    options = parser.parse_args()
    if options.job == "models":
        make_models(options.run, options.folder, options.updates)
    elif options.job == "run":
        jobs = [job for job in make_jobs(options.folder) if not job.result_file.exists()]
        with tqdm(total=len(jobs), unit="policy") as bar:
            run_jobs(_extract, jobs, report=bar.update)
    else:
        report(options.folder)


if __name__ == "__main__":
    main()
