"""Rounds: policies play in the real env, the world model learns from what they met, and they go on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from torchrl_pwm._utils.stopwatch import added
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.envs import WorldModelWrapper, get_task_set
from torchrl_pwm.evaluation import EvaluationResult, read_metrics
from torchrl_pwm.evaluation.curves import Series
from torchrl_pwm.runs.extraction import extract_all
from torchrl_pwm.runs.own_episodes import play, round_seed
from torchrl_pwm.runs.policies import load_actor, policy_file
from torchrl_pwm.runs.round_loop import APART, Round, beginning, go_through, place_of, policy_folders, train_on
from torchrl_pwm.runs.saved import read_result
from torchrl_pwm.runs.starts import FRESH, Before
from torchrl_pwm.runs.world_model import (
    keep_chosen_world_model,
    load_world_model,
    measured_states,
    prepare_disagreement,
)


@dataclass(frozen=True)
class LastExtraction:
    """What is left to be done for policies of some tasks: the last extraction, or only their evaluation.

    Args:
        tasks: whose policies they are.
        config: of the extraction.
        world_model: file of the frozen model.
        before: what they begin with.
    """

    tasks: list[str]
    config: DictConfig
    world_model: Path
    before: Before = FRESH


def run_rounds(
    config: DictConfig, folder: Path, store: EpisodeStore, file: Path, tasks: list[str]
) -> list[LastExtraction]:
    """``rounds.count`` rounds of extraction, collection and world-model training.

    A policy visits what the data do not hold, above all where the model promises too much. In each round it plays,
    with noise, the model trains on with ``rounds.share`` of every batch from own episodes, and actor and critics go on
    from where they were, with ``rounds.starts`` of their start states from own episodes. With ``rounds.warm=false``
    every round's policies begin anew. Episodes of earlier runs, ``rounds.earlier``, count as
    own ones from the beginning.

    Every round's policies are evaluated on seeds apart from those of the final score. Those that count are extracted
    after the last round; with ``rounds.keep=best`` they are for each task those of the round that did best, with
    ``rounds.keep=honest`` those of the last round in which the probe sees no sign that they exploit the model. With
    ``rounds.until_honest`` there are no further rounds once it sees none in any task. With ``rounds.anew`` policies
    begin anew in the model of the last round, as they did before the first one: with ``rounds.keep=last`` these count,
    otherwise they are one more round to choose from.

    Returns:
        What is left to be done for the policies that count, the tasks with the same world model together.
    """
    rounds, file, chosen = go_through(
        config.rounds,
        folder,
        file,
        extract=lambda file, rounds, anew: _extract(config, folder, store, file, tasks, rounds, anew),
        play=lambda last: _collect(config, last, tasks),
        train=lambda file, rounds: train_on(
            config,
            folder / "rounds" / str(len(rounds)),
            load_world_model(config, file),
            Path(store.root),
            rounds,
            tasks,
            states=measured_states(store, tasks, seed=config.seed),
            names=get_task_set(config.task_set).names,
        ),
    )
    if chosen is None:
        last, before = beginning(config, rounds, config.rounds.get("anew", False))
        return [LastExtraction(tasks, last, file, before)]
    counting = {one.folder: one for one in chosen.values()}
    keep_chosen_world_model(folder, list({one.world_model for one in counting.values()}))
    return [
        LastExtraction(
            [task for task in tasks if chosen[task].folder == place],
            config,
            one.world_model,
            Before(place, finished=True),
        )
        for place, one in sorted(counting.items())
    ]


def add_earlier(results: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The results of policies of a run with the seconds that their rounds took."""
    for result in results:
        earlier = [read_result(file.with_name("result.json")) for file in _policies(folder, result)]
        result["seconds"] += sum(found["seconds"] for found in earlier)
        result["phases"] = added([result.get("phases", {}), *(found.get("phases", {}) for found in earlier)])
    return results


def policy_metrics(folder: Path, result: dict[str, Any]) -> dict[str, Series]:
    """The metrics of a policy's training in the folder of a run, those of its rounds one after the other."""
    last = policy_file(folder, result["task"], result["seed"])
    places = [file.parent for file in (*_policies(folder, result), last) if any(file.parent.rglob("*.csv"))]
    curves, begin = [], 0.0
    for metrics in map(read_metrics, places or [last.parent]):
        curves.append({name: (x + begin, y) for name, (x, y) in metrics.items()})
        begin = max(x[-1] for x, _ in curves[-1].values() if len(x))
    found = {name: [curve[name] for curve in curves if name in curve] for name in curves[-1]}
    return {
        name: (np.concatenate([x for x, _ in of]), np.concatenate([y for _, y in of])) for name, of in found.items()
    }


def _policies(folder: Path, result: dict[str, Any]) -> list[Path]:
    """The files of a policy, round by round."""
    files = [policy_file(place, result["task"], result["seed"]) for place in policy_folders(folder)]
    return [file for file in files if file.exists()]


def _extract(
    config: DictConfig,
    folder: Path,
    store: EpisodeStore,
    file: Path,
    tasks: list[str],
    rounds: Sequence[Round],
    anew: bool,
) -> Round:
    """The policies after some rounds, and what they earn on seeds that the final score does not use."""
    settings = config.rounds
    number, here = place_of(folder, rounds, anew)
    apart = {"episodes": settings.eval_episodes, "seed": config.evaluation.seed + APART}
    # Those that begin anew each time only show where the model is wrong.
    hasty = {} if settings.warm or settings.keep != "last" or anew else settings.overrides
    begun, before = beginning(config, rounds, anew)
    merged: DictConfig = OmegaConf.merge(begun, {"evaluation": apart}, hasty)  # type: ignore[assignment]
    if config.loss.disagreement_coef:
        prepare_disagreement(config, store, file, tasks)
    results = extract_all(merged, here, Path(store.root), file, tasks, before)
    table, scores, trust = get_task_set(config.task_set), {}, {}
    for task in tasks:
        found = [result for result in results if result["task"] == task]
        trust[task] = [result["last"]["trust"] for result in found]
        scores[task] = float(EvaluationResult.from_records(table[task], found).score or 0.0)
    return Round(number, here, file, scores, trust, anew)


def _collect(config: DictConfig, last: Round, tasks: list[str]) -> None:
    """Episodes of a round's policies, those of all seeds alike."""
    model, root = load_world_model(config, last.world_model), last.folder / "data"
    for number in range(config.seeds):
        seed = config.seed + number
        play(
            config,
            root if config.seeds == 1 else root / f"seed-{seed}",
            {task: load_actor(config, model, last.folder, task, seed=seed) for task in tasks},
            seed=round_seed(seed, last.number),
            transform=WorldModelWrapper(model),
        )
