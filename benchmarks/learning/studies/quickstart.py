"""Data, training curve and the model's error on real episodes: the numbers of benchmarks/results/quickstart.md.

    python -m benchmarks.learning.studies.quickstart --run runs/quickstart --policies runs/demo

``--run`` is the folder of examples/make_quickstart.py, ``--policies`` that of a run of examples/pwm_mt80.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.learning.jobs import ROOT
from benchmarks.learning.results import markdown_table
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.evaluation import read_metrics
from torchrl_pwm.evaluation.trust import PROBED_STEPS, probe_trust
from torchrl_pwm.modules import load_quickstart
from torchrl_pwm.runs.policies import load_actor
from torchrl_pwm.runs.saved import read_config

SEED = 2000  # of episodes that neither trained nor chose anything


def data_table(store: EpisodeStore) -> str:
    """One line per task."""
    rows, sources = [], store.manifest.source["tasks"]
    for task, data in store.statistics().items():
        success = "-" if data["success_mean"] is None else f"{data['success_mean']:.0%}"
        amount = [str(sources[task]["episodes"]), f"{data['transitions']:,}"]
        rows.append([task, sources[task]["behavior"], *amount, f"{data['behavior_return_mean']:.0f}", success])
    return markdown_table(["task", "behaviour", "episodes", "transitions", "mean return", "success"], rows)


def plot_curve(run: Path, file: Path) -> None:
    """Losses and errors of the training batches over updates; a line marks where each round begins."""
    rounds = sorted((run / "rounds").glob("*/world_model"), key=lambda folder: int(folder.parent.name))
    parts = [read_metrics(folder) for folder in (run / "world_model", *rounds)]
    shown = {
        "loss_consistency": "consistency loss",
        "loss_reward": "reward loss",
        "reward_error": "mean reward error, open loop",
        "latent_error_last": "latent error at the last step",
    }
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(shown)), shown.items()):
        before = 0.0
        for number, metrics in enumerate(parts):
            steps, values = before + np.asarray(metrics[name][0]), metrics[name][1]
            if number:
                axes.axvline(before, color="#c0504d", linewidth=0.8)
            axes.plot(steps, values, color="#9db8d2", linewidth=0.8)
            window = min(20, len(values))
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            axes.plot(steps[window - 1 :], smooth, color="#1f4e79")
            before = steps[-1]
        axes.set_yscale("log")
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def error_table(policies: Path, episodes: int) -> str:
    """Predicted minus real reward along fresh episodes of the first seed's policies, and the mean of its size."""
    quickstart, config = load_quickstart(), read_config(policies)
    rows = []
    for task in quickstart.tasks:
        actor = load_actor(config, quickstart.world_model, policies, task)
        probe = probe_trust(actor, quickstart.world_model, task, episodes=episodes, seed=SEED)
        length = get_task_set(quickstart.task_set)[task].episode_length
        cells = [f"{probe.errors[step]:+.3f} ({probe.absolute_errors[step]:.3f})" for step in probe.errors]
        rows.append([task, f"{probe.returns.mean() / length:.2f}", *cells])
    return markdown_table(["task", "mean reward", *(f"step {step}" for step in PROBED_STEPS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--policies", type=Path)
    parser.add_argument("--episodes", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(data_table(EpisodeStore(options.run / "data")), end="\n\n")
    plot_curve(options.run, ROOT / "docs" / "images" / "quickstart_training.png")
    if options.policies:
        print(error_table(options.policies, options.episodes))


if __name__ == "__main__":
    main()
