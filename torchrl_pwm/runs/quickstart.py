"""The quickstart: a run that makes it, and the file that extraction can start from anywhere."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torchrl import torchrl_logger

from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.data import EpisodeStore, start_states
from torchrl_pwm.evaluation import package_versions
from torchrl_pwm.modules import QUICKSTART_FILE, pack_quickstart
from torchrl_pwm.runs.pwm_offline import run_pipeline
from torchrl_pwm.runs.saved import read_config
from torchrl_pwm.runs.world_model import latest_world_model, load_world_model


def make_quickstart(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder``, packs its world model, and returns the path of ``summary.json``."""
    summary = run_pipeline(config, folder)
    file = export_quickstart(folder, OmegaConf.select(config, "out") or folder / QUICKSTART_FILE.name)
    torchrl_logger.info(f"quickstart: {file}")
    return summary


def export_quickstart(folder: str | os.PathLike[str], file: str | os.PathLike[str]) -> Path:
    """Packs the world model of a run with start states and the statistics of its data.

    Args:
        folder: folder of a run that collected its data and trained its model; its ``extraction.starts`` say how many
            start states are packed, and which.
        file: where the safetensors file goes.

    Raises:
        FileNotFoundError: if the run has no world model or data.

    Returns:
        The path of the file.
    """
    config = read_config(folder)
    store = EpisodeStore(config.data.root or Path(folder) / "data")
    model = load_world_model(config, latest_world_model(Path(folder)))
    content = pack_quickstart(
        model,
        {task: start_states(store, task, seed=config.seed, **config.extraction.starts) for task in store.tasks},
        store.statistics(),
        task_set=config.task_set,
        source={
            "seed": config.seed,
            "data": store.manifest.source,
            "world_model": OmegaConf.to_container(config.world_model),
            "rounds": OmegaConf.to_container(config.rounds),
            "starts": OmegaConf.to_container(config.extraction.starts),
            "versions": package_versions(),
        },
    )
    replace_file(Path(file), content)
    return Path(file)
