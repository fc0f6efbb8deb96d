"""Own episodes of policies: their collection in a round, and batches that hold a share of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tensordict.nn import TensorDictModuleBase

from torchrl_pwm.data import EpisodeStore, ReplayMixture, TDMPC2ExperienceReplay, collect_dataset
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.runs.data import family


def play(
    config: DictConfig,
    root: Path,
    policies: Mapping[str, TensorDictModuleBase],
    *,
    seed: int,
    transform: Any = None,
) -> EpisodeStore:
    """``rounds.episodes`` of each task's policy, with the levels ``rounds.noise``, or what is left of them.

    Args:
        config: of the run.
        root: folder of the data set.
        policies: by task.
        seed: of the episodes.
        transform: makes what the policies read.
    """
    settings, table = config.rounds, get_task_set(config.task_set)
    return collect_dataset(
        list(policies),
        root,
        episodes={task: settings.episodes[family(table[task].suite)] for task in policies},
        behavior="policy",
        policy=policies,
        transform=transform,
        noise=list(settings.noise),
        task_set=config.task_set,
        seed=seed,
        workers=config.workers,
        progress=config.progress,
    )


def mix(
    data: Path, own: Sequence[Path], *, share: float, batch_size: int, slice_len: int, tasks: list[str], seed: int
) -> ReplayMixture:
    """Sequences of a data set and of own episodes, whose ``share`` of each batch is divided among their data sets."""
    each = max(round(share * batch_size / len(own)), 1)
    sizes = [(data, max(batch_size - len(own) * each, 1)), *((root, each) for root in own)]
    return ReplayMixture(
        [TDMPC2ExperienceReplay(root, size, slice_len=slice_len, tasks=tasks, seed=seed) for root, size in sizes]
    )
