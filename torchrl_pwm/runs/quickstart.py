"""The quickstart: a run that makes it, and the file that extraction can start from anywhere."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torchrl import torchrl_logger

from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.data import EpisodeStore
from torchrl_pwm.evaluation import package_versions
from torchrl_pwm.modules import QUICKSTART_FILE, pack_quickstart
from torchrl_pwm.runs.data import select_tasks
from torchrl_pwm.runs.own_episodes import earlier_data
from torchrl_pwm.runs.pwm_offline import run_pipeline
from torchrl_pwm.runs.round_loop import policy_folders
from torchrl_pwm.runs.saved import read_config
from torchrl_pwm.runs.starts import Before, choose_starts
from torchrl_pwm.runs.world_model import latest_world_model, load_world_model


def make_quickstart(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder``, packs its world model, and returns the path of ``summary.json``."""
    summary = run_pipeline(config, folder)
    file = export_quickstart(folder, OmegaConf.select(config, "out") or folder / QUICKSTART_FILE.name)
    torchrl_logger.info(f"quickstart: {file}")
    return summary


def export_quickstart(folder: str | os.PathLike[str], file: str | os.PathLike[str]) -> Path:
    """Packs the world model of a run with start states and the statistics of its data.

    The statistics are of the recorded episodes alone; the start states are those of the run's policies, a share of
    them from own episodes where the run has some, of earlier runs or of its rounds.

    Args:
        folder: folder of a run that has data and trained its model; its ``extraction.starts`` say how many start
            states are packed, and which.
        file: where the safetensors file goes.

    Raises:
        FileNotFoundError: if the run has no world model or data.

    Returns:
        The path of the file.
    """
    config = read_config(folder)
    store = EpisodeStore(config.data.root or Path(folder) / "data")
    statistics = store.statistics()
    tasks = [task for task in store.tasks if task in select_tasks(config.task, store.task_set)]
    earlier = Before(own=earlier_data(config.rounds))
    played = (place / "data" for place in policy_folders(Path(folder)) if (place / "data").is_dir())
    shares = config.rounds.get("starts", 0.0), config.rounds.get("starts_matched")  # which runs of before have not
    before = Before(None, (*earlier.own, *played), *shares)
    choose = partial(choose_starts, config.extraction.starts, seed=config.seed, data=Path(store.root), before=before)
    starts = {task: choose(task) for task in tasks}
    kinds = [dict(EpisodeStore(root).manifest.source) for root in earlier.stores]  # rather than where they lay
    model = load_world_model(config, latest_world_model(Path(folder)))
    content = pack_quickstart(
        model,
        {task: states for task, (states, _) in starts.items()},
        {task: statistics[task] for task in tasks},
        task_set=config.task_set,
        recorded={task: count for task, (_, count) in starts.items()},
        source={
            "seed": config.seed,
            "data": store.manifest.source,
            "world_model": OmegaConf.to_container(config.world_model),
            "rounds": OmegaConf.to_container(OmegaConf.merge(config.rounds, {"earlier": kinds})),
            "starts": OmegaConf.to_container(config.extraction.starts),
            "versions": package_versions(),
        },
    )
    replace_file(Path(file), content)
    return Path(file)
