"""Command line: ``torchrl-pwm COMMAND key=value ...`` composes a configuration and makes, or resumes, a run."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from torchrl_pwm.runs.folder import open_run

CONF = Path(__file__).parent / "conf"

# What a wrong option, file or package raises; each says what to do.
_USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
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
    given = {override.split("=")[0] for override in overrides}
    further = ("task=${task_set}", "planner=tdmpc2") if "checkpoint" in given else ()
    return [override for override in further if override.split("=")[0] not in given]


@dataclass(frozen=True)
class Command:
    """What a command of the command line composes and calls.

    Args:
        purpose: one line for the help.
        config: name of the configuration in ``conf/``.
        run: path of the function that is called with configuration and folder and returns the path of the summary.
        implied: overrides that others bring with them.
        table: whether the summary is of many tasks, with a score each, or of one env.
    """

    purpose: str
    config: str
    run: str
    implied: Callable[[list[str]], list[str]] = lambda overrides: []
    table: bool = False


COMMANDS = {
    "mt80": Command(
        "PWM on MT30 and MT80: data, world model, a policy per task, evaluation and report",
        "pwm_mt80",
        "torchrl_pwm.runs.pwm_offline.run_pipeline",
        default_preset,
        table=True,
    ),
    "online": Command(
        "online PWM on any TorchRL env; by default a Gymnasium task",
        "pwm_online",
        "torchrl_pwm.runs.pwm_online.run_online",
    ),
    "simulator": Command(
        "online PWM in a simulator of robots or pendulums",
        "pwm_simulator",
        "torchrl_pwm.runs.pwm_online.run_online",
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
        "torchrl_pwm.runs.load.record_run",
    ),
    "report": Command("shows a finished run again; of mt80, writes its report anew", "report", ""),
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
        config = command_config(options.command, options.overrides)
        if options.cfg:
            print(OmegaConf.to_yaml(config), end="")
            return
        run: Any = get_method(command.run)
        if options.command == "record":
            print(run(config))
            return
        config, folder = open_run(config, options.overrides)
        show(run(config, folder), table=command.table)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Command, overrides and flags of a command line."""
    parser = argparse.ArgumentParser(
        prog="torchrl-pwm",
        description=__doc__,
        epilog="`torchrl-pwm COMMAND --help` shows the options of a command, `--cfg` what it composes.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        text = (CONF / f"{command.config}.yaml").read_text() if command.run else "Usage: torchrl-pwm report run=FOLDER"
        sub = commands.add_parser(
            name,
            help=command.purpose,
            description=f"{command.purpose}.\n\nAny option of {command.config}.yaml can be overridden:\n\n{text}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, such as seed=1 model=5M")
        sub.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    return parser.parse_args(arguments)


def command_config(name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a command, with overrides and what these imply."""
    command = COMMANDS[name]
    return compose_config(command.config, [*overrides, *command.implied(list(overrides))])


def compose_config(name: str, overrides: Sequence[str], folder: Path = CONF) -> DictConfig:
    """The configuration ``name`` of a folder, where what it includes may lie in ``conf/`` too, with overrides.

    Raises:
        HydraException: for an option that there is none of.
    """
    further = [] if folder == CONF else [f"hydra.searchpath=[file://{CONF}]"]
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(name, [*overrides, *further], return_hydra_config=True)
    with open_dict(config):
        if "preset" in config.hydra.runtime.choices:
            config.preset = config.hydra.runtime.choices["preset"]
        del config["hydra"]
    return config


def show(summary: Path, *, table: bool) -> None:
    """Prints the scores of a summary, and the paths of report and summary."""
    if table:
        from torchrl_pwm.evaluation import format_table, read_summary

        config: Any = OmegaConf.load(summary.parent / "config.yaml")
        print(format_table(read_summary(summary), task_set=config.task_set), end="\n\n")
        if (summary.parent / "report.html").exists():
            print(f"To look at in a browser: {summary.parent / 'report.html'}")
    else:
        from torchrl_pwm.runs.evaluator import format_outcomes

        print(format_outcomes(summary))
    print(summary)


def report(overrides: list[str]) -> None:
    """Shows the run that ``run=FOLDER`` names, by the command that made it.

    Raises:
        ValueError: without ``run=``.
        FileNotFoundError: if no run has ended there.
    """
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    if "run" not in given:
        raise ValueError(f"report needs the folder of a run, run=FOLDER; found {overrides}")
    folder = Path(given.pop("run"))
    if not (folder / "summary.json").exists():
        raise FileNotFoundError(f"No finished run in {folder}: expected summary.json there. resume={folder} goes on.")
    config: Any = OmegaConf.load(folder / "config.yaml")
    further = [f"{key}={value}" for key, value in given.items()]
    if "extraction" in config:
        main(["mt80", f"resume={folder}", *further])
    else:
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
        sys.exit(f"{type(error).__name__}: {error}\n(HYDRA_FULL_ERROR=1 shows where this was raised.)")


if __name__ == "__main__":
    main()
