"""Runs of Hydra scripts, each in a folder of its own, in which an interrupted one goes on."""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from torchrl_pwm._utils.files import replace_file

ROOT = Path(__file__).parents[2]
#: Where reports are written.
RESULTS = ROOT / "benchmarks" / "results"
_CODE = (".", ":!benchmarks/results", ":!docs", ":!*.md")  # what git compares
_JOB = "job.json"


def study_parser(name: str, description: str | None, **options: Any) -> argparse.ArgumentParser:
    """The command line that studies have in common: run or report, the seeds, and where runs and report are."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / name, help="of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of the report")
    return parser


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Runs a Hydra script, named from the root of the repository, in this process; SystemExit where it fails."""
    file = ROOT / script
    sys.argv = [str(file), *arguments]
    sys.path[:0] = [str(ROOT), str(file.parent)]
    runpy.run_path(str(file), run_name="__main__")


@dataclass(frozen=True)
class Job:
    """One run of a Hydra script.

    Args:
        name: what the progress bar calls it.
        script: its file, below the root of the repository.
        settings: ``key=value`` of the command line that decide what it computes.
        folder: where it writes ``config.yaml`` first and ``summary.json`` last.
        needs: files and folders that must be there first, such as those of other jobs.
    """

    name: str
    script: str
    settings: tuple[str, ...]
    folder: Path
    needs: tuple[Path, ...] = ()

    @property
    def command(self) -> str:
        """The command line that computes the same."""
        return " ".join(["python", self.script, *self.settings])

    @property
    def done(self) -> bool:
        """Whether its results are there."""
        return (self.folder / "summary.json").exists()

    def check(self) -> None:
        """Raises ValueError if the folder holds a run with other settings."""
        file = self.folder / _JOB
        if not file.exists():
            return
        settings = json.loads(file.read_text())["settings"]
        if differing := sorted(set(settings) ^ set(self.settings)):
            raise ValueError(
                f"{self.folder} holds a run with other settings ({', '.join(differing)}): give the same ones, choose "
                "another folder with --folder, or remove it to begin anew"
            )

    def run(self) -> None:
        """Runs the script in this process, or what is left of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        started = (self.folder / "config.yaml").exists()
        if not started:
            content: dict[str, Any] = {"script": self.script, "settings": list(self.settings), "commit": commit()}
            content["machine"] = machine(torch.device("cpu"))
            replace_file(self.folder / _JOB, json.dumps(content, indent=2).encode())
        place = [f"resume={self.folder}"] if started else [*self.settings, f"folder={self.folder}"]
        run_script(self.script, [*place, "progress=false", "device=cpu"])


def commit() -> str | None:
    """The commit of the code, with a mark if code differs from it, not results or pages; None outside a repository."""
    try:
        name, changed = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (("describe", "--always"), ("diff", "HEAD", "--name-only", "--", *_CODE))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{name}-dirty" if changed else name


def split_settings(arguments: Sequence[str]) -> tuple[Sequence[str], tuple[str, ...]]:
    """The options of a command line, and the settings of the runs, which follow ``--``."""
    mark = [*arguments, "--"].index("--")
    return arguments[:mark], tuple(arguments[mark + 1 :])
