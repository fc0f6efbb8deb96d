"""Finished runs of every kind, made once from the interrupted ones of version 0.1.0."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

RUNS = Path(__file__).parents[1] / "golden" / "runs"
NOTED = 1000.0  # seconds that the interrupted ones took
COMMANDS = {
    "shac": "shac",
    "pwm_online": "simulator",
    "tdmpc2_online": "tdmpc2-online",
    "mt80": "mt80",
    "tdmpc2_mt80": "tdmpc2-mt80",
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a finished run of a kind, which tests leave as it is."""
    pytest.importorskip("hydra")
    from torchrl_pwm.runs.cli import main

    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name) / "run"
            shutil.copytree(RUNS / name / "interrupted", folder)
            (folder / "seconds.json").write_text(str(NOTED))
            main([COMMANDS[name], f"resume={folder}"])
            folders[name] = folder
        return folders[name]

    return make
