"""Run folders: where a run lives, and what it was configured to do."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torchrl.record.loggers import Logger, get_logger

from torchrl_pwm._utils.files import replace_file

_CONFIG = "config.yaml"
# These say where and how fast a run goes on and what its report holds, not what it computes.
_FREE = ("resume", "folder", "progress", "workers", "threads", "device", "compare", "out")
_LOGGERS = ("csv", "tensorboard", "wandb")


def open_run(config: DictConfig, overrides: Iterable[str] = ()) -> tuple[DictConfig, Path]:
    """The configuration and the folder of a new run, or of the one that ``config.resume`` names; writes nothing.

    A resumed run keeps its own configuration. What the command line sets must agree with it, except where and how
    fast it runs, and what its report is compared with.

    Args:
        config: the composed configuration.
        overrides: the command line's settings, ``key=value``.

    Raises:
        FileNotFoundError: if there is no run in the folder to resume.
        FileExistsError: if a new run's folder already holds one.
        ValueError: if the command line contradicts the run that is resumed, or is of another command.
    """
    if not config.resume:
        folder = Path(config.folder) if config.folder else _fresh_folder(_label(config))
        if (folder / _CONFIG).exists():
            raise FileExistsError(
                f"{folder} already holds a run: go on with resume={folder}, or choose another folder."
            )
        return config, folder
    folder = Path(config.resume)
    if not (folder / _CONFIG).exists():
        raise FileNotFoundError(f"No run to resume in {folder}: expected {_CONFIG} there.")
    saved = OmegaConf.load(folder / _CONFIG)
    assert isinstance(saved, DictConfig)
    made, asked = kind_of_run(saved), kind_of_run(config)
    if made != asked:
        raise ValueError(f"The run in {folder} is one of {made}, not of {asked}: go on with `torchrl-pwm {made}`.")
    given = [override.lstrip("+~").split("=")[0] for override in overrides]
    different = [
        f"{key}: the run has {OmegaConf.select(saved, key)}, the command says {OmegaConf.select(config, key)}"
        for key in given
        if key not in _FREE and OmegaConf.select(saved, key) != OmegaConf.select(config, key)
    ]
    if different:
        raise ValueError(
            f"The run in {folder} has another configuration ({'; '.join(different)}). "
            "Leave these options out to go on with it, or start a new run without resume=."
        )
    for key in _FREE:
        if key in given:
            saved[key] = config[key]
    return saved, folder


def claim_folder(config: DictConfig, folder: Path) -> None:
    """Makes the folder of a new run and writes its configuration there; leaves a resumed run's alone."""
    if not (folder / _CONFIG).exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / _CONFIG, OmegaConf.to_yaml(config, resolve=False).encode())


def kind_of_run(config: DictConfig) -> str:
    """The command that a configuration is of, told by the groups that it alone has."""
    kinds = {
        "held_out": "offline",
        "extraction": "mt80",
        "training": "tdmpc2-mt80",
        "planner": "tdmpc2-online",
        "online": "online",
    }
    return next((kind for key, kind in kinds.items() if key in config), "shac")


def make_logger(config: Any, folder: Path) -> Logger:
    """The logger of a run, or of a part of it that lives in ``folder``.

    Raises:
        ValueError: for an unknown one.
    """
    if config.logger not in _LOGGERS:
        raise ValueError(f"logger must be one of {', '.join(_LOGGERS)}, found {config.logger!r}")
    return get_logger(config.logger, str(folder.parent), folder.name)


def _label(config: DictConfig) -> str | Iterable[str]:
    """What a run is called: its task, or its data set if it is of all of its tasks."""
    root = OmegaConf.select(config, "data.root")
    return Path(root).name if root and config.task == "all" else config.task


def _fresh_folder(task: str | Iterable[str]) -> Path:
    names = [task] if isinstance(task, str) else list(task)
    label = names[0].replace(",", "+") if len(names) == 1 else f"{len(names)}-tasks"
    base = Path("runs") / f"{datetime.date.today().isoformat()}_{label}"
    candidates = [base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 1000))]
    return next(folder for folder in candidates if not folder.exists())
