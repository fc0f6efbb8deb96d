"""Forward progress of PWM's ant over policy updates, where it learns from recorded steps alone.

    python -m benchmarks.learning.studies.ant_progress runs/simulators/pwm/ant/seed-*   # results/ant_progress.{csv,png}

Each run (``pwm=newton/ant_recorded``) is repeated from its frozen world model on: the clone, first values, and policy
updates, between which 64 episodes of the mean action are measured, from start states that training does not see. The
run itself measures returns, which hardly tell an ant that walks from one that stands.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from tensordict import TensorDictBase
from torchrl.envs import Transform, TransformedEnv
from tqdm import tqdm

from benchmarks.learning.groups import METHODS
from benchmarks.learning.jobs import RESULTS
from benchmarks.learning.results import write_csv
from benchmarks.machine import processor
from torchrl_pwm import WorldModelPolicy, evaluate_policy, load_policy
from torchrl_pwm.envs.random_policy import RandomPolicy
from torchrl_pwm.runs.load import read_config
from torchrl_pwm.runs.pwm_online import make_losses, make_stepper, make_training_env, open_sequences
from torchrl_pwm.trainers.pwm import warm_start

POINTS = 10
# Of the ant's observation: the torso's forward speed [m/s]; a step lasts 1/60 s.
_FORWARD_SPEED, _STEP, _ACTIONS = 5, 1 / 60, 8


class ForwardProgress(Transform):
    """The metres that a step leads forward, in place of its reward."""

    def __init__(self) -> None:
        super().__init__(in_keys=["reward"], out_keys=["reward"])

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        speed = next_tensordict["observation"][..., _FORWARD_SPEED, None]
        return next_tensordict.set("reward", speed * _STEP)


def random_progress(seed: int, config: Any) -> float:
    """:func:`forward_progress` of uniform actions in [-1, 1]."""
    return forward_progress(RandomPolicy(_ACTIONS, seed), config)


def forward_progress(policy: Any, config: Any) -> float:
    """Mean forward progress [m] of the episodes of the final evaluation."""
    count, seed = config.evaluation.episodes, config.evaluation.seed
    env = TransformedEnv(instantiate(config.env, num_envs=count), ForwardProgress())
    return evaluate_policy(policy, env, episodes=count, seed=seed, task=config.task).return_mean


def progress(folder: Path, points: int = POINTS) -> Iterator[dict[str, Any]]:
    """Policy updates and metres forward in an episode, of the clone first and then ``points`` times."""
    finished, config = load_policy(folder, "cpu"), read_config(folder)
    if config.online.model_updates or config.online.recent_share:
        raise ValueError(f"{folder} learnt from its own steps: expected a run with pwm=newton/ant_recorded.")
    torch.manual_seed(config.seed)
    model, loss, model_loss = make_losses(config, make_training_env(config, "cpu"), "cpu")
    model.load_state_dict(finished.world_model.state_dict())
    replay = open_sequences(config, config.pretraining.demonstrations or config.pretraining.data)
    each = config.online.policy_updates
    stepper = make_stepper(config, loss, model_loss, replay)
    warm_start(loss, stepper.policy_stepper, replay, **config.pretraining.warm_start)
    policy = WorldModelPolicy(model, loss.actor_network)
    random = random_progress(config.seed, config)
    between = config.iterations // points
    for iteration in tqdm(range(points * between + 1), desc=folder.name):
        if iteration % between == 0:
            metres = forward_progress(policy, config)
            yield {"seed": config.seed, "updates": iteration * each, "metres": metres, "random": random}
        stepper.update(None)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Metres over updates, a line a seed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    seeds = sorted({row["seed"] for row in rows})
    for seed, marker in zip(seeds, itertools.cycle("osD^v")):
        curve = [(row["updates"], row["metres"]) for row in rows if row["seed"] == seed]
        axes.plot(
            *zip(*curve), color=METHODS["pwm"][1], alpha=0.7, marker=marker, markersize=4, label=f"PWM, seed {seed}"
        )
    random = float(np.mean([row["random"] for row in rows]))
    axes.axhline(random, color="tab:gray", linestyle="--", label=f"random actions, {random:.2f} m")
    axes.set(xlabel="policy updates, from the clone of the data on", ylabel="forward in an episode [m]")
    axes.set_title(f"Newton ant from recorded steps; {len(seeds)} seeds; {processor()}", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--points", type=int, default=POINTS, help="measurements of each run, beside the clone's")
    options = parser.parse_args(arguments)
    rows = [row for run in options.runs for row in progress(run, options.points)]
    write_csv(rows, options.results / "ant_progress.csv")
    draw(rows, options.results / "ant_progress.png")


if __name__ == "__main__":
    main()
