"""Run folders: where a run lives, and what it was configured to do."""

from __future__ import annotations

import contextlib
import datetime
import errno
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torchrl import torchrl_logger
from torchrl.record.loggers import Logger, get_logger

from torchrl_pwm._utils.checkpoint import has_checkpoint
from torchrl_pwm._utils.devices import choose_device
from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.files import locked, replace_file
from torchrl_pwm._utils.quiet import quiet_torchrl
from torchrl_pwm._utils.stopping import Stopped, stoppable
from torchrl_pwm._utils.torchrun import launched, rank
from torchrl_pwm.runs.saved import CONFIG_FILE, check_saved, config_text, named_targets, of_run, read_config

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_HELD: dict[Path, contextlib.ExitStack] = {}  # the run folders that this process works in, with their locks


class Stage(NamedTuple):
    """A part of a run: where its checkpoints are, and what it makes at its end, as patterns in the folder."""

    checkpoints: tuple[str, ...]
    results: tuple[str, ...]


# These say where and how fast a run goes on and what its report holds, not what it computes.
_FREE = (
    "resume",
    "folder",
    "progress",
    "workers",
    "threads",
    "evaluator",
    "device",
    "engine",
    "compare",
    "out",
    "tasks_per_batch",
)
_LOGGERS = ("csv", "tensorboard", "wandb")
# By command: the options that a run may be made longer by. What the run has of its end is set aside then, and the rest
# goes on from the checkpoints.
_OF_ONE_ENV = {"iterations": Stage(("checkpoint",), ("summary.json",))}
_OF_TDMPC2 = ("summary.json", "tasks", "model/model.pt", "rounds")
_LONGER = {
    "online": _OF_ONE_ENV,
    "shac": _OF_ONE_ENV,
    "tdmpc2-online": _OF_ONE_ENV,
    "pretrain": {
        "world_model.iterations": Stage(
            ("world_model/checkpoint",), ("summary.json", "report.md", "world_model/world_model.pt")
        ),
    },
    "tdmpc2-mt80": {
        "training.iterations": Stage(("model/checkpoint",), _OF_TDMPC2),
        "rounds.count": Stage((), ("summary.json", "tasks")),
    },
    "mt80": {
        "extraction.iterations": Stage(
            ("policies/*/seed-*/checkpoint",), ("summary.json", "policies/*/seed-*/result.json")
        ),
        # Policies of another world model begin anew.
        "world_model.iterations": Stage(
            ("world_model/checkpoint",),
            ("summary.json", "world_model/world_model.pt", "world_model/disagreement.pt", "policies", "rounds"),
        ),
        # The last policies are those of the first further round, and are made as such.
        "rounds.count": Stage((), ("summary.json", "policies")),
    },
    "offline": {
        "extraction.iterations": Stage(("checkpoint", "policies/*/checkpoint"), ("summary.json",)),
        "world_model.iterations": Stage(
            ("world_model/checkpoint",),
            (
                "summary.json",
                "world_model.pt",
                "world_model/world_model.pt",
                "policy.pt",
                "checkpoint",
                "policies",
                "rounds",
            ),
        ),
        "rounds.count": Stage((), ("summary.json", "policy.pt", "checkpoint", "scalars")),
    },
}


def check_packages(config: DictConfig) -> None:
    """Imports what a run needs at its end, so that a package that is missing is named at its start.

    Raises:
        ImportError: if one is missing.
        ValueError: if the logger is unknown, or there is no such device.
    """
    if config.logger not in _LOGGERS:
        raise ValueError(f"logger must be one of {', '.join(_LOGGERS)}, found {config.logger!r}")
    choose_device(config.device)
    tasks = kind_of_run(config) in ("mt80", "tdmpc2-mt80")
    drawn = tasks or (config.logger == "csv" and kind_of_run(config) != "offline")
    needed = [("matplotlib", "plots", "the picture of a run")] if drawn else []
    if config.logger != "csv":
        needed.append((config.logger, config.logger, f"logger={config.logger}"))
    if kind_of_run(config) == "mt80":
        needed.append(("jinja2", "plots", "the report of a run"))
        if OmegaConf.select(config, "evaluation.film"):
            needed.append(("PIL.Image", "plots", "a film strip (evaluation.film)"))
    for module, extra, purpose in needed:
        require(module, extra=extra, purpose=purpose)


def open_run(config: DictConfig, overrides: Iterable[str] = ()) -> tuple[DictConfig, Path]:
    """The configuration and the folder of a new run, or of the one that ``config.resume`` names; writes nothing.

    A resumed run keeps its own configuration. What the command line sets must agree with it, except where and how
    fast it runs, what its report is compared with, and a larger number of iterations: it is trained longer then, see
    :func:`claim_folder`. The learning rates go on as those of a run that was so long from the start.

    Args:
        config: the composed configuration.
        overrides: the command line's settings, ``key=value``.

    Raises:
        FileNotFoundError: if there is no run in the folder to resume.
        FileExistsError: if a new run's folder already holds one.
        DamagedFileError: if the configuration of the run that is resumed is damaged, or names what the command line
            does not and is no part of this package, see :func:`.read_config`.
        ValueError: if the command line contradicts the run that is resumed, or is of another command.
    """
    if not config.resume:
        folder = Path(config.folder) if config.folder else _fresh_folder(_label(config))
        if (folder / CONFIG_FILE).exists():
            raise FileExistsError(
                f"{folder} already holds a run: go on with resume={folder}, or choose another folder."
            )
        return config, folder
    folder = Path(config.resume)
    if not (folder / CONFIG_FILE).exists():
        raise FileNotFoundError(f"No run to resume in {folder}: expected {CONFIG_FILE} there.")
    saved = read_config(folder, targets=named_targets(config))
    with of_run(folder):
        return _agreed(config, saved, folder, overrides), folder


def _agreed(config: DictConfig, saved: DictConfig, folder: Path, overrides: Iterable[str]) -> DictConfig:
    """The configuration of a run that is resumed, with what the command line may set of it."""
    made, asked = kind_of_run(saved), kind_of_run(config)
    if made != asked:
        raise ValueError(f"The run in {folder} is one of {made}, not of {asked}: go on with `torchrl-pwm {made}`.")
    check_saved(saved, folder)
    given = [override.lstrip("+~").split("=")[0] for override in overrides]
    longer = [key for key in _longer(saved) if key in given and _is_longer(config, saved, key)]
    for key in longer:
        _check_checkpoints(folder, _longer(saved)[key], key, saved)
    free = [key for key in given if key.split(".")[0] in _FREE]
    different = [
        f"{key}: the run has {OmegaConf.select(saved, key)}, the command says {OmegaConf.select(config, key)}"
        for key in given
        if key not in (*free, *longer) and OmegaConf.select(saved, key) != OmegaConf.select(config, key)
    ]
    if different:
        raise ValueError(
            f"The run in {folder} has another configuration ({'; '.join(different)}). "
            f"Leave these options out to go on with it, or start a new run without resume=. More "
            f"{' or '.join(_longer(saved)) or 'iterations'} than it has train it longer."
        )
    for key in (*sorted(free), *longer):  # a group before its options
        OmegaConf.update(saved, key, OmegaConf.select(config, key), merge=False)
    return saved


def claim_folder(config: DictConfig, folder: Path) -> None:
    """Makes the folder of a new run and writes its configuration there; leaves a resumed run's alone.

    Of a resumed run that is to have more iterations, the results are moved to ``earlier/<option>-<number>/`` first,
    from which its training goes on. No other process may work in the folder until the block of :func:`running`, or
    else this process, ends.

    Raises:
        BlockingIOError: if another process does.
    """
    file = folder / CONFIG_FILE
    folder.mkdir(parents=True, exist_ok=True)
    _hold(folder)
    if not file.exists():
        replace_file(file, config_text(config))
        return
    saved = read_config(folder, targets=named_targets(config))
    for key, stage in _longer(saved).items():
        if not _is_longer(config, saved, key):
            continue
        old = OmegaConf.select(saved, key)
        _set_aside(folder, stage.results, folder / "earlier" / f"{key}-{old}")
        OmegaConf.update(saved, key, OmegaConf.select(config, key))
        torchrl_logger.info(f"{key}: {old} -> {OmegaConf.select(config, key)}; learning rates as of so long a run")
        replace_file(file, config_text(saved))


def _hold(folder: Path) -> None:
    """Takes the folder's lock, if this process does not have it; where folders cannot be locked, it goes on."""
    place = folder.resolve()
    if place in _HELD:
        return
    with contextlib.ExitStack() as stack:
        if stack.enter_context(locked(place)) is False:
            raise BlockingIOError(
                f"another process is at the run in {folder}: wait until it has ended, stop it, or choose another folder"
            )
        _HELD[place] = stack.pop_all()


def works_in(folder: Path) -> bool:
    """Whether this process makes the run in a folder."""
    return folder.resolve() in _HELD


@contextlib.contextmanager
def running(folder: Path, command: str) -> Iterator[None]:
    """A run in its folder, as a process of its own makes it: how it is ended, and what is said of how it goes on.

    A first SIGINT, SIGTERM or SIGHUP lets it finish an iteration and save, a second ends it at once; the exit code is
    130, 143 or 129. An error of the disk is one sentence. What has made no more than empty files is removed.

    Args:
        folder: of the run; one that exists is kept from other processes.
        command: that makes such a run.

    Raises:
        BlockingIOError: if another process is at the run.
        OSError: if a file cannot be written.
        SystemExit: where a signal ended it.
    """
    first = not rank()  # of several processes of one run the first keeps the folder, and is its only writer
    made = [path for path in (folder, *folder.parents) if first and not path.exists()]
    try:
        # Several processes would stop at different iterations: a launcher ends them, and starts them again.
        with contextlib.nullcontext() if launched() else stoppable(), quiet_torchrl():
            if first and not made:
                _hold(folder)
            yield
    except (Exception, KeyboardInterrupt) as error:
        with contextlib.suppress(OSError):  # where another process has taken it meanwhile
            if made and folder.exists():
                _hold(folder)
            discard_unstarted(made)
        # Torch and tensordict pass an interruption on as errors of their own.
        if isinstance(error, (KeyboardInterrupt, RuntimeError)) and (number := _interrupted(error)):
            _end(folder, command, number)
        if isinstance(error, OSError) and _is_of_disk(error, folder):
            raise type(error)(_sentence(folder, command, error)) from error
        raise
    finally:
        if (lock := _HELD.pop(folder.resolve(), None)) is not None:
            lock.close()


def _interrupted(error: BaseException | None) -> int | None:
    """The signal that an error comes from, if it is one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    return (error if isinstance(error, Stopped) else Stopped()).number


def _end(folder: Path, command: str, number: int) -> None:
    advice = f"It goes on with: {command} resume={folder}" if (folder / CONFIG_FILE).exists() else "Nothing was kept."
    stopped = Stopped(number)
    sys.stderr.write(f"\n{'Interrupted' if stopped.exit_code == 130 else 'Terminated'}. {advice}\n")
    sys.exit(stopped.exit_code)


def _is_of_disk(error: OSError, folder: Path) -> bool:
    """Whether the system refused to write, or something that the run itself needs is not there."""
    inside = isinstance(error.filename, str) and Path(error.filename).absolute().is_relative_to(folder.absolute())
    return error.errno in _REFUSED or (error.errno is not None and inside)


def _sentence(folder: Path, command: str, error: OSError) -> str:
    """Which file the system could not serve, and how the run goes on."""
    file = error.filename or folder
    if not (folder / CONFIG_FILE).exists():
        return f"{file}: {error.strerror}. Nothing was kept; make room or give leave to write there, or set folder="
    kept = "The last checkpoint is intact" if any(folder.rglob("checkpoint.json")) else "There was no checkpoint yet"
    return f"{file}: {error.strerror}. {kept}; when this is mended, the run goes on with: {command} resume={folder}"


def finished(config: DictConfig, folder: Path) -> Path | None:
    """The summary of a run that has ended with this configuration."""
    if not (folder / "summary.json").exists():
        return None
    saved = read_config(folder, targets=named_targets(config))
    longer = any(_is_longer(config, saved, key) for key in _longer(saved))
    return None if longer else folder / "summary.json"


def _longer(saved: DictConfig) -> dict[str, Stage]:
    """The options that a run may be made longer by."""
    # An earlier run may not have an option at all.
    known = _LONGER.get(kind_of_run(saved), {}).items()
    options = {key: stage for key, stage in known if OmegaConf.select(saved, key) is not None}
    if OmegaConf.select(saved, "rounds.count"):
        # Policies that have gone on in rounds do not go back to the updates before these.
        options = {key: stage for key, stage in options.items() if key != "extraction.iterations"}
    return options


def _is_longer(config: DictConfig, saved: DictConfig, key: str) -> bool:
    return bool(OmegaConf.select(config, key) > OmegaConf.select(saved, key))


def _check_checkpoints(folder: Path, stage: Stage, key: str, saved: DictConfig) -> None:
    """Refuses to make a run longer that has ended and kept no checkpoint to go on from."""
    if OmegaConf.select(saved, "checkpoint") and key in ("training.iterations", "world_model.iterations"):
        raise ValueError(f"The run in {folder} was given its model and trains none: {key} cannot be larger.")
    ended = any(any(folder.glob(pattern)) for pattern in stage.results)
    places = [place for pattern in stage.checkpoints for place in folder.glob(pattern)]
    if stage.checkpoints and ended and not (places and all(map(has_checkpoint, places))):
        raise FileNotFoundError(f"The run in {folder} has ended, and it holds no checkpoint to go on from.")


def _set_aside(folder: Path, patterns: Iterable[str], target: Path) -> None:
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        moved = target / path.relative_to(folder)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)


def discard_unstarted(made: Sequence[Path]) -> None:
    """Removes what a run that failed made, if it is no more than its configuration and empty files.

    Args:
        made: the run's folder and those around it that were not there before, from the inside out.
    """
    if not made:
        return
    files = [file for file in made[0].rglob("*") if file.is_file()]
    if all(file.name == CONFIG_FILE or not file.stat().st_size for file in files):
        shutil.rmtree(made[0], ignore_errors=True)
        for folder in made[1:]:
            with contextlib.suppress(OSError):  # something else is in it
                folder.rmdir()


def kind_of_run(config: DictConfig) -> str:
    """The command that a configuration is of, told by the groups that it alone has."""
    kinds = {
        "distributed": "pretrain",
        "held_out": "offline",
        "extraction": "mt80",
        "training": "tdmpc2-mt80",
        "planner": "tdmpc2-online",
        "online": "online",
    }
    return next((kind for key, kind in kinds.items() if key in config), "shac")


def make_logger(config: Any, folder: Path) -> Logger:
    """The logger of a run, or of a part of it that lives in ``folder``."""
    return get_logger(config.logger, str(folder.parent), folder.name)


def _label(config: DictConfig) -> str | Iterable[str]:
    """What a run is called: its task, or its data set if it is of all of its tasks."""
    root = OmegaConf.select(config, "data.root")
    return Path(root).name if root and config.task == "all" else config.task


def _fresh_folder(task: str | Iterable[str]) -> Path:
    names = [task] if isinstance(task, str) else list(task)
    # of Gymnasium's "module:namespace/Name-v0", what no name of a folder may have
    label = re.sub("[:/]", "_", names[0].replace(",", "+")) if len(names) == 1 else f"{len(names)}-tasks"
    base = Path("runs") / f"{datetime.date.today().isoformat()}_{label}"
    candidates = [base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 1000))]
    return next(folder for folder in candidates if not folder.exists())
