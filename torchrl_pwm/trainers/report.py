"""What a run leaves for its reader: summary.json, plots and film strips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.envs.rendering import rendering_available
from torchrl_pwm.evaluation import (
    evaluate_policy,
    film_strip,
    plot_scores,
    plot_training,
    write_summary,
)
from torchrl_pwm.evaluation.results import EvaluationResult
from torchrl_pwm.trainers.checkpoint import replace_file
from torchrl_pwm.trainers.extraction import make_loss
from torchrl_pwm.trainers.models import load_world_model


def write_report(
    config: DictConfig,
    folder: Path,
    store: EpisodeStore,
    model_file: Path,
    results: list[dict[str, Any]],
    *,
    seconds: float,
) -> Path:
    """Writes the summary and the pictures.

    The results of several seeds of a task are one row: all their episodes together, and the mean extraction time.
    """
    clock = folder / "seconds.json"
    if clock.exists():
        seconds += json.loads(clock.read_text())
    replace_file(clock, json.dumps(seconds).encode())
    task_set = get_task_set(config.task_set)
    behavior = store.statistics()
    rows = []
    for task in dict.fromkeys(result["task"] for result in results):
        found = _merge([result for result in results if result["task"] == task], task_set[task], config)
        times = [result["seconds"] for result in results if result["task"] == task]
        rows.append(
            found.summary_row(
                behavior_return_mean=behavior[task]["behavior_return_mean"],
                seconds_extraction=round(float(np.mean(times)), 1),
            )
        )
    path = folder / "summary.json"
    summary = write_summary(path, rows, seed=config.seed, seconds_total=round(seconds, 1))
    plot_scores(summary, folder / "scores.png", task_set=task_set)
    for result in results:
        curves = folder / "policies" / result["task"] / f"seed-{result['seed']}"
        if config.logger == "csv":
            plot_training(
                curves,
                curves / "training.png",
                references={"mean of the data": behavior[result["task"]]["behavior_return_mean"]},
                title=f"{result['task']}, seed {result['seed']}",
            )
    if config.evaluation.film and rendering_available():
        _film(config, folder, model_file, list(dict.fromkeys(result["task"] for result in results)))
    return path


def _merge(results: list[dict[str, Any]], spec: Any, config: DictConfig) -> EvaluationResult:
    returns = np.concatenate([result["returns"] for result in results])
    successes = None
    if results[0]["successes"] is not None:
        successes = np.concatenate([result["successes"] for result in results]).astype(bool)
    scores = [
        spec.score(value, None if successes is None else bool(successes[i])) for i, value in enumerate(returns.tolist())
    ]
    return EvaluationResult(
        task=spec.name,
        seed=config.evaluation.seed,
        returns=returns,
        lengths=np.full(len(returns), spec.episode_length),
        successes=successes,
        scores=np.asarray(scores),
    )


def _film(config: DictConfig, folder: Path, model_file: Path, tasks: list[str]) -> None:
    """One strip of pictures per task, of the first seed's policy."""
    task_set = get_task_set(config.task_set)
    model = load_world_model(config, model_file)
    films = {}
    for task in tasks[: config.evaluation.film]:
        loss = make_loss(config, model, task_set.action_dim)
        policy = folder / "policies" / task / f"seed-{config.seed}" / "policy.pt"
        loss.actor_network.load_state_dict(torch.load(policy, weights_only=True)["actor"])
        found = evaluate_policy(
            loss.actor_network,
            task,
            task_set=task_set,
            world_model=model,
            episodes=1,
            seed=config.evaluation.seed,
            record=1,
            pixel_size=(96, 96),
        )
        films[f"{task}: return {found.return_mean:.0f}"] = found.frames[0]
    film_strip(films, folder / "film.png")
