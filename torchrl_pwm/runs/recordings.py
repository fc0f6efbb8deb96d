"""Recorded episodes that an offline run learns from, and those that it holds out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import DictConfig

from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay, split_episodes


@dataclass(frozen=True)
class Recordings:
    """The data of a run.

    Args:
        store: the data set.
        tasks: names of the tasks that the run is of.
        kept, held_out: numbers of the episodes that are learned from, and of the others.
    """

    store: EpisodeStore
    tasks: tuple[str, ...]
    kept: Any
    held_out: Any

    def replay(self, batch_size: int, slice_len: int, **options: Any) -> TDMPC2ExperienceReplay:
        """Slices of the episodes that are learned from, or of ``episodes=``; short episodes are padded."""
        options = {"episodes": self.kept, "tasks": self.tasks, **options}
        return TDMPC2ExperienceReplay(self.store.root, batch_size, slice_len=slice_len, strict_length=False, **options)

    def measured(self, task: str) -> Any:
        """Numbers of the episodes of a task that were held out, or of all of them where none was."""
        (rows,) = self.store.select(task)
        own = self.held_out[(self.held_out >= rows.start) & (self.held_out < rows.stop)]
        return own if len(own) else np.arange(rows.start, rows.stop)


def open_recordings(config: DictConfig) -> Recordings:
    """The data of a run, its tasks, and the episodes that are held out.

    Raises:
        FileNotFoundError, ValueError: if there are none, or a task has none.
    """
    if not config.data.root:
        raise ValueError(
            "data=FOLDER names the folder of a data set: write_episodes makes one from arrays, import_minari and "
            "import_d4rl from data sets of others"
        )
    store = EpisodeStore(config.data.root)
    names = None if config.task == "all" else config.task.split(",") if isinstance(config.task, str) else config.task
    tasks = tuple(rows.name for rows in store.select(names if names is None else list(names)))
    return Recordings(store, tasks, *split_episodes(store, config.held_out, seed=config.seed))
