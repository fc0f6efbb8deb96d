"""Command line: ``torchrl-pwm COMMAND key=value ...`` composes a configuration and makes, or resumes, a run."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        InstantiationException,
        MissingConfigException,
    )
    from hydra.utils import get_method
    from omegaconf import DictConfig, OmegaConf, open_dict
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
except ImportError as error:
    raise ImportError('a run needs Hydra, which is not installed; pip install "torchrl-pwm[runs]"') from error
from torchrl import torchrl_logger

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from torchrl_pwm import __version__
from torchrl_pwm._utils.ranges import check_options
from torchrl_pwm._utils.torchrun import launched, rank
from torchrl_pwm.runs.folder import check_packages, kind_of_run, open_run, running
from torchrl_pwm.runs.saved import limits, names_own_code, of_run, read_config, saved_choice

CONF = Path(__file__).parent / "conf"
_DESCRIPTION = """A command composes its configuration from Hydra overrides, key=value, and makes a run in a folder:

    torchrl-pwm mt80 task=walker-stand seeds=3      # policies from the world model of the package
    torchrl-pwm online env.task=Hopper-v5           # world model and policy from an env's own steps
    torchrl-pwm mt80 resume=runs/2026-11-21_walker-stand

`torchrl-pwm COMMAND --help` shows the options of a command, `--cfg` what it composes.

Ctrl-C, SIGTERM or SIGHUP lets a run finish its iteration and save, a second one ends it at once. Exit codes: 0 it has
ended, 1 an error, 2 a wrong command line, 130 ended by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP."""

# What a wrong option, file or package raises; each says what to do.
_USER_ERRORS = (
    ValueError,
    OSError,
    ImportError,
    FloatingPointError,
    HydraException,
    OmegaConfBaseException,
)


def default_preset(overrides: list[str]) -> list[str]:
    """The preset that data or model of a run call for, where the overrides name none."""
    if any(override.startswith("preset=") for override in overrides):
        return []
    given = {override for override in overrides if override.startswith(("data=", "checkpoint="))}
    if given & {"data=collect", "data=open"}:
        return ["preset=from_scratch"]
    return ["preset=published"] if given - {"data=quickstart", "checkpoint=quickstart"} else []


def default_evaluation(overrides: list[str]) -> list[str]:
    """For a given TD-MPC2 checkpoint: all its tasks and the published planner, where the overrides do not say."""
    return _with_checkpoint(overrides, "task=${task_set}", "planner=tdmpc2")


def published_agent(overrides: list[str]) -> list[str]:
    """For a given agent: the settings of the published runs, where the overrides do not say."""
    # The agent has learnt from the recorded data already.
    return _with_checkpoint(overrides, "pwm=published", "pretraining.updates=0")


def _with_checkpoint(overrides: list[str], *implied: str) -> list[str]:
    """What a given checkpoint brings with it, as far as the overrides do not say it themselves."""
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    if given.get("checkpoint", "null") in ("null", ""):
        return []
    return [override for override in implied if override.partition("=")[0] not in given]


def engine_of_run(overrides: list[str]) -> list[str]:
    """The engine of the run that is resumed, where options of one are given, and not which."""
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    if "engine" in given or not given.get("resume") or not any(key.startswith("engine.") for key in given):
        return []
    from torchrl_pwm.runs.engines import ENGINES

    engine = saved_choice(given["resume"], "engine", ENGINES)
    return [] if engine is None else [f"engine={engine}"]


@dataclass(frozen=True)
class Command:
    """What a command of the command line composes and calls.

    Args:
        purpose: one line for the help.
        config: name of the configuration in ``conf/``.
        run: path of the function that is called with configuration and folder and returns the path of the summary.
        implied: overrides that others bring with them.
        short: options that may be written shorter, by what is written.
        table: whether the summary is of many tasks, with a score each, or of one env.
    """

    purpose: str
    config: str
    run: str
    implied: Callable[[list[str]], list[str]] = lambda overrides: []
    short: Mapping[str, str] = field(default_factory=dict)
    table: bool = False

    def spelled_out(self, overrides: Sequence[str]) -> list[str]:
        """Overrides with the whole names of their options."""
        parts = [override.partition("=") for override in overrides]
        return [
            f"{key if value.startswith('{') else self.short.get(key, key)}{equals}{value}"
            for key, equals, value in parts
        ]


COMMANDS = {
    "mt80": Command(
        "PWM on MT30 and MT80: data, world model, a policy per task, evaluation and report",
        "pwm_mt80",
        "torchrl_pwm.runs.pwm_offline.run_pipeline",
        default_preset,
        table=True,
    ),
    "pretrain": Command(
        "a world model alone, data=open data.root=FOLDER; in several processes under torchrun",
        "pretrain",
        "torchrl_pwm.runs.pretrain.run_pretraining",
    ),
    "offline": Command(
        "a world model and policies from recorded episodes, data=FOLDER",
        "offline",
        "torchrl_pwm.runs.offline.run_offline",
        short={"data": "data.root", "env": "env.task"},  # alone they would be choices of Hydra's, as others have them
    ),
    "online": Command(
        "online PWM on any TorchRL env; by default a Gymnasium task",
        "pwm_online",
        "torchrl_pwm.runs.pwm_online.run_online",
        published_agent,
    ),
    "simulator": Command(
        "online PWM in a simulator of robots or pendulums",
        "pwm_simulator",
        "torchrl_pwm.runs.pwm_online.run_online",
        published_agent,
    ),
    "shac": Command("SHAC through a differentiable simulator", "shac_simulator", "torchrl_pwm.runs.shac.run_shac"),
    "tdmpc2-mt80": Command(
        "TD-MPC2 on MT30 and MT80: training, or evaluation of a checkpoint",
        "tdmpc2_mt80",
        "torchrl_pwm.runs.tdmpc2_offline.run_offline_tdmpc2",
        default_evaluation,
        table=True,
    ),
    "tdmpc2-online": Command(
        "online TD-MPC2 on one env",
        "tdmpc2_online",
        "torchrl_pwm.runs.tdmpc2_online.run_online_tdmpc2",
    ),
    "make-quickstart": Command(
        "makes the world model and start states that come with the package",
        "make_quickstart",
        "torchrl_pwm.runs.quickstart.make_quickstart",
        table=True,
    ),
    "record": Command(
        "records steps of a finished run's policy, with more noise from env to env",
        "record_steps",
        "torchrl_pwm.runs.record.record_run",
    ),
    "report": Command("prints the result of a finished run: report run=FOLDER", "", ""),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command; what a wrong option, file or package raises ends the process with its message.

    Args:
        arguments: command and Hydra overrides, such as ``["online", "env.task=Hopper-v5"]``; default: those of the
            process. With ``HYDRA_FULL_ERROR=1`` errors keep their traceback.
    """
    options = parse(sys.argv[1:] if arguments is None else list(arguments))
    with user_errors():
        if options.command == "report":
            report(options.overrides)
            return
        command = COMMANDS[options.command]
        overrides = command.spelled_out(options.overrides)
        config = command_config(options.command, overrides)
        if options.cfg:
            print(OmegaConf.to_yaml(config), end="")
        elif options.command == "record":
            with running(Path(config.out), "torchrl-pwm record"):
                recorded = get_method(command.run)(config)
            print(recorded)
        else:
            run_command(options.command, get_method(command.run), config, overrides, table=command.table)


def run_command(
    name: str, run: Callable[[DictConfig, Path], Path], config: DictConfig, overrides: Sequence[str], *, table: bool
) -> None:
    """Makes a new run, or goes on with the one that ``config.resume`` names, and prints its result."""
    if launched():
        from torchrl_pwm.runs.pretrain import launched_again

        config = launched_again(name, config)
    resumed = bool(config.resume)
    config, folder = open_run(config, overrides)
    check_packages(config)
    torchrl_logger.info(f"run folder: {folder}")
    again = shlex.join(["torchrl-pwm", name, *filter(names_own_code, overrides)])  # which no folder is trusted to name
    with running(folder, again), of_run(folder) if resumed else contextlib.nullcontext():
        summary = run(config, folder)
    if not rank():
        show(summary, table=table)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command, overrides and flags of a command line."""
    parser = argparse.ArgumentParser(
        prog="torchrl-pwm", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"torchrl-pwm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.purpose,
            description=f"{command.purpose}.\n\n{describe(command.config) if command.config else ''}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, such as seed=1 model=5M")
        sub.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    # In front, so that it may stand between overrides too.
    flags = [argument for argument in arguments if argument == "--cfg"]
    rest = [argument for argument in arguments if argument != "--cfg"]
    return parser.parse_args([*rest[:1], *flags, *rest[1:]])


def describe(config: str) -> str:
    """The options of a configuration: its file, those that it includes, and the choices of its groups."""
    text = (CONF / f"{config}.yaml").read_text()
    entries = [line.strip()[2:].split("#")[0].strip() for line in text.splitlines() if line.startswith("  - ")]
    included = [entry for entry in entries if (CONF / f"{entry}.yaml").exists()]
    parts = [f"# {config}.yaml, of which any option can be overridden\n{text}"]
    for group in [entry.removeprefix("override ").split(":")[0] for entry in entries if ":" in entry]:
        if len(names := _choices(group)) > 1:
            parts.append(f"# choices of {group}=\n#   {', '.join(names)}\n")
    return "\n".join([*parts, *map(describe, included)])


def _choices(group: str) -> list[str]:
    """What a group of the configuration may be: the names of its files, and those that are registered."""
    files = sorted((CONF / group).rglob("*.yaml")) if (CONF / group).is_dir() else []
    names = [file.relative_to(CONF / group).with_suffix("").as_posix() for file in files]
    names += [name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get(group, {})]
    return list(dict.fromkeys(names))


def command_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a command, with overrides and what these imply."""
    command = COMMANDS[name]
    overrides = command.spelled_out(overrides)
    return compose_config(command.config, [*overrides, *command.implied(overrides), *engine_of_run(overrides)])


def compose_config(name: str, overrides: Sequence[str], folder: Path = CONF) -> DictConfig:
    """The configuration ``name`` of a folder, where what it includes may lie in ``conf/`` too, with overrides.

    Raises:
        ValueError: for an option or a choice that there is none of, or a value outside what ``conf/limits.yaml``
            allows.
        HydraException: for another fault of the overrides.
    """
    further = [] if folder == CONF else [f"hydra.searchpath=[file://{CONF}]"]
    with initialize_config_dir(str(folder), version_base="1.3"):
        try:
            config = compose(name, [*overrides, *further], return_hydra_config=True)
        except MissingConfigException as error:
            group, _, choice = (error.missing_cfg_file or "").partition("/")
            if not (names := _choices(group)):
                raise
            end = _close(choice, names) or f"; expected one of {', '.join(names)}"
            raise ValueError(f"there is no {group}={choice}{end}") from error
        except ConfigCompositionException as error:
            if unknown := re.match(r"Could not override '([^']+)'", str(error)):
                raise ValueError(_unknown_option(unknown[1], compose(name, further))) from error
            raise
    with open_dict(config):
        if "preset" in config.hydra.runtime.choices:
            config.preset = config.hydra.runtime.choices["preset"]
        del config["hydra"]
    check_options(OmegaConf.to_container(config), limits())  # type: ignore[arg-type]
    return config


def _unknown_option(key: str, config: DictConfig) -> str:
    """What is said of an option that there is none of."""
    known: list[str] = []
    nodes: list[tuple[str, Any]] = [("", OmegaConf.to_container(config))]
    while nodes:
        prefix, node = nodes.pop()
        for name, value in node.items():
            known.append(f"{prefix}{name}")
            if isinstance(value, dict):
                nodes.append((f"{prefix}{name}.", value))
    return f"there is no option {key}{_close(key, known)}"


def _close(name: str, known: Sequence[str]) -> str:
    """The end of a message, with the names that a mistyped one is close to."""
    close = difflib.get_close_matches(name, known, 3, 0.7)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def show(summary: Path, *, table: bool) -> None:
    """Prints the scores of a summary, and the paths of report and summary."""
    if (summary.parent / "report.md").exists():
        print((summary.parent / "report.md").read_text())
    elif table:
        from torchrl_pwm.evaluation import format_table, read_summary

        config = read_config(summary.parent, simulator=False)
        print(format_table(read_summary(summary), task_set=config.task_set), end="\n\n")
        if (summary.parent / "report.html").exists():
            print(f"To look at in a browser: {summary.parent / 'report.html'}")
    else:
        from torchrl_pwm.runs.evaluator import format_outcomes

        print(format_outcomes(summary))
    print(summary)


def report(overrides: list[str]) -> None:
    """Prints the result of the run that ``run=FOLDER`` names.

    Raises:
        ValueError: for anything else.
        FileNotFoundError: if no run has ended there.
    """
    if len(overrides) != 1 or not overrides[0].startswith("run="):
        raise ValueError(
            f"report takes the folder of a run and nothing else, run=FOLDER; found {' '.join(overrides)!r}"
        )
    folder = Path(overrides[0].removeprefix("run="))
    config = read_config(folder, simulator=False)
    if not (folder / "summary.json").exists():
        command = kind_of_run(config)
        raise FileNotFoundError(f"The run in {folder} has not ended: torchrl-pwm {command} resume={folder} goes on.")
    show(folder / "summary.json", table="task_set" in config)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Ends the process with the message of what a wrong option, file or package raises."""
    try:
        yield
    except _USER_ERRORS as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if isinstance(error, InstantiationException) and isinstance(error.__cause__, _USER_ERRORS):
            error = error.__cause__  # Hydra's own message repeats it and adds the call.
        if isinstance(error, MissingMandatoryValue):
            name = error.full_key
            error = ValueError(f"{name} is needed and was not given: add {name}=...; --help shows what it may be.")
        sys.exit(f"{type(error).__name__}: {error}\n(HYDRA_FULL_ERROR=1 shows where this was raised.)")


if __name__ == "__main__":
    main()
