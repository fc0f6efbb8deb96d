"""The loop of rounds: extract, play, train on, and the round that counts in each task."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl import torchrl_logger

from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.runs.own_episodes import earlier_data, mix, with_rate
from torchrl_pwm.runs.starts import FRESH, Before
from torchrl_pwm.runs.world_model import train_world_model

APART = 7919  # from the seeds of the final score to those that a round is chosen by
_ANEW = "anew"  # folder, in that of a round, of policies that begin anew in its world model


@dataclass(frozen=True)
class Round:
    """Policies of a round.

    Args:
        number: from 0, whose policies know the data alone.
        folder: with ``policies/TASK/seed-N``.
        world_model: file of the model that they were extracted from.
        scores: of each task, in episodes on seeds of their own.
        trust: what the probe says of each task's policies in these, by seed.
        anew: whether they began anew after the last round, from random weights in the model that rounds have made.
    """

    number: int
    folder: Path
    world_model: Path
    scores: dict[str, float]
    trust: dict[str, list[dict[str, Any]]]
    anew: bool = False

    @property
    def exploits(self) -> list[str]:
        """The tasks whose policies show a sign that they exploit the model."""
        return [task for task, found in self.trust.items() if any(each["exploited"] for each in found)]

    @property
    def score(self) -> float:
        """Mean over the tasks."""
        return float(np.mean(list(self.scores.values())))


def go_through(
    settings: DictConfig,
    folder: Path,
    file: Path,
    *,
    extract: Callable[[Path, list[Round], bool], Round],
    play: Callable[[Round], object],
    train: Callable[[Path, list[Round]], Path],
) -> tuple[list[Round], Path, dict[str, Round] | None]:
    """``rounds.count`` rounds, each of whose stages does nothing where a run has done it before.

    Args:
        settings: ``rounds`` of the configuration.
        folder: of the run.
        file: of the world model before the first round.
        extract: gives the policies after some rounds, or those that begin anew in the last one's model.
        play: collects episodes of a round's policies.
        train: trains the model in a file on with the episodes of all rounds, and returns the new file.

    Returns:
        The rounds, the last world model, and for each task the round whose policies count; None where they are still to
        be extracted from that model.
    """
    rounds: list[Round] = []
    for _ in range(settings.count):
        rounds.append(extract(file, rounds, False))
        if settings.until_honest and not rounds[-1].exploits:
            counting = rounds[-1:]
            break
        play(rounds[-1])
        file = train(file, rounds)
        _record(folder, rounds)
    else:
        if settings.keep == "last":
            return rounds, file, None
        rounds.append(extract(file, rounds, False))
        counting = rounds
    # Runs of before have no such setting; and the first round's policies have begun anew already.
    others = [extract(file, rounds, True)] if settings.get("anew") and len(rounds) > 1 else []
    return rounds, file, _record(folder, rounds + others, choose(counting + others, settings.keep))


def place_of(folder: Path, rounds: Sequence[Round], anew: bool) -> tuple[int, Path]:
    """Number and folder of the policies after some rounds, or of those that begin anew in the last one's model."""
    number = len(rounds) - anew
    here = folder / "rounds" / str(number)
    return number, here / _ANEW if anew else here


def choose(rounds: Sequence[Round], keep: str) -> dict[str, Round]:
    """The round whose policies count, for each task.

    Args:
        rounds: of a run.
        keep: ``last``; ``best``, for each task the one of the highest score, of equal ones the last; or ``honest``, for
            each task the last one in which the probe sees no sign that its policies exploit the model, and the last
            where there is none.
    """
    tasks = rounds[-1].scores
    if keep == "last":
        return dict.fromkeys(tasks, rounds[-1])
    if keep == "best":
        return {task: max(reversed(rounds), key=lambda found: found.scores[task]) for task in tasks}
    return {
        task: next((found for found in reversed(rounds) if task not in found.exploits), rounds[-1]) for task in tasks
    }


def policy_folders(folder: Path) -> list[Path]:
    """The folders of the policies of a run's rounds, in the order in which they were extracted."""
    rounds = sorted((path for path in (folder / "rounds").glob("*") if path.is_dir()), key=lambda path: int(path.name))
    return [place for path in rounds for place in (path, path / _ANEW) if place.is_dir()]


def own_data(settings: DictConfig, rounds: Sequence[Round] = ()) -> tuple[Path, ...]:
    """The folders of own episodes: those of earlier runs, ``rounds.earlier``, and of all rounds."""
    return (*earlier_data(settings), *(found.folder / "data" for found in rounds))


def beginning(config: DictConfig, rounds: Sequence[Round], anew: bool) -> tuple[DictConfig, Before]:
    """The configuration of the extraction after some rounds, and what its policies begin with.

    The actor's rate falls from round to round, by one factor, to ``rounds.actor_lr`` in the last one. Those that begin
    ``anew`` know nothing of the rounds but the model.
    """
    settings, rounds = config.rounds, () if anew else rounds
    own = own_data(settings, rounds)
    if not own:
        return config, FRESH
    warm = bool(rounds) and settings.warm
    # which runs of before have not
    matched, sequences = settings.get("starts_matched"), settings.get("critic_sequences", 0) if settings.warm else 0
    folder = rounds[-1].folder if warm else None
    before = Before(folder, own, settings.starts, matched, sequences if rounds else 0)
    if not warm:
        return config, before
    changed: dict[str, Any] = {"extraction": {"iterations": settings.policy_iterations}}
    if settings.get("actor_lr"):  # nor this
        first = config.stepper.actor_lr
        changed["stepper"] = {"actor_lr": first * (settings.actor_lr / first) ** (len(rounds) / settings.count)}
    return OmegaConf.merge(config, changed), before  # type: ignore[return-value]


def train_on(
    config: DictConfig,
    here: Path,
    model: PWMWorldModel,
    data: Path,
    rounds: Sequence[Round],
    tasks: list[str],
    *,
    states: TensorDictBase,
    names: Sequence[str],
    **options: Any,
) -> Path:
    """Trains a model on, with a share of each batch from own episodes, and returns its file.

    Args:
        config: of the run.
        here: folder of the next round.
        model: as it was before.
        data: folder of the data set.
        rounds: whose episodes it learns from.
        tasks: that it learns.
        states, names: on which it is measured, see :func:`~torchrl_pwm.runs.world_model.train_world_model`.
        options: of the replays, see :func:`~torchrl_pwm.runs.own_episodes.mix`.
    """
    settings = config.rounds
    torch.manual_seed(config.seed + len(rounds))  # whichever stages were done before
    replay = mix(
        settings,
        data,
        own_data(settings, rounds),
        batch_size=config.world_model.batch_size,
        slice_len=config.world_model.slice_len,
        tasks=tasks,
        seed=config.seed + len(rounds),
        **options,
    )
    return train_world_model(
        with_rate(config, "model_stepper"),
        here / "world_model",
        model,
        replay,
        iterations=settings.iterations,
        states=states,
        names=names,
    )


def _record(folder: Path, rounds: list[Round], chosen: dict[str, Round] | None = None) -> dict[str, Round] | None:
    """Writes ``rounds.json``, says how it goes, and returns the rounds that were chosen."""
    found = [
        {
            "round": one.number,
            "score": one.score,
            "tasks": one.scores,
            "trust": {task: [each["line"] for each in seeds] for task, seeds in one.trust.items()},
            **({"anew": True} if one.anew else {}),
        }
        for one in rounds
    ]
    kept = None if chosen is None else {task: one.number for task, one in chosen.items()}
    content: dict[str, Any] = {"rounds": found, "kept": kept}
    if rounds[-1].anew and chosen is not None:
        content["anew"] = [task for task, one in chosen.items() if one.anew]
    replace_file(folder / "rounds.json", json.dumps(content, indent=2).encode())
    last = rounds[-1]
    exploiting = f"exploiting the model: {', '.join(last.exploits)}" if last.exploits else "no sign of exploitation"
    which = f"after {last.number} rounds{', begun anew' if last.anew else ''}"
    torchrl_logger.info(f"{which}: mean score {last.score:.3f}, {exploiting}")
    return chosen
