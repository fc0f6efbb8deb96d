"""What a command prints is its own: nothing of TorchRL's workings stands between."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

pytest.importorskip("hydra")

from torchrl import torchrl_logger

from torchrl_pwm.runs.cli import main

SMALL = ["iterations=1", "eval_episodes=1", "evaluation.episodes=1", "progress=false", "device=cpu"]
ONLINE = ["collector.random_steps=250", "warmup_updates=1", "replay.batch_size=2", "replay.slice_len=3"]
COMMANDS = {
    "shac": ["env.num_envs=2", "+env.episode_length=10", "loss.horizon=4"],
    "simulator": ["env.num_envs=2", "+env.episode_length=10", *ONLINE],
    "tdmpc2-online": ["env=gym/pendulum", "evaluation.plan=false", "collector.plan=false", *ONLINE],
}


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_torchrl_is_printed(command, tmp_path):
    if "env=gym/pendulum" in COMMANDS[command]:
        pytest.importorskip("gymnasium")
    kept = Kept()
    torchrl_logger.addHandler(kept)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            main([command, *COMMANDS[command], *SMALL, f"folder={tmp_path / 'run'}"])
    finally:
        torchrl_logger.removeHandler(kept)
    # Python shows deprecations to those alone who call what is deprecated.
    shown = [str(warning.message) for warning in warned if not issubclass(warning.category, DeprecationWarning)]
    assert shown == []
    assert [record.getMessage() for record in kept.records if "torchrl_pwm" not in Path(record.pathname).parts] == []
    assert any(record.getMessage().startswith("run folder") for record in kept.records)
