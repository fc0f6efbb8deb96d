"""Command line: help, mistakes, interruptions and results, as somebody meets them in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("hydra")

from torchrl_pwm import runs
from torchrl_pwm.runs.cli import COMMANDS, main

RUNS = Path(__file__).parents[1] / "golden" / "runs"
TINY = ["env.num_envs=4", "+env.episode_length=10", "loss.horizon=4", "actor.units=[8]", "value.units=[8]"]
TINY += ["evaluation.episodes=2", "eval_episodes=2", "save_interval=2", "progress=false", "device=cpu"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(arguments, capsys):
    """Standard output of a command that ends well."""
    main(arguments)
    return capsys.readouterr().out


def test_the_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and all(f"\n    {name} " in text or f"\n    {name}\n" in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("online", ["online.yaml", "warmup_updates:", "choices of env=", "analytic/cartpole_swingup"]),
        ("mt80", ["world_model:", "choices of preset=", "from_scratch"]),
        ("make-quickstart", ["pwm_mt80.yaml", "out:"]),
        ("report", ["run=FOLDER"]),
        ("pretrain", ["choices of model=", "5M, 19M, 48M, 317M"]),
    ],
)
def test_the_help_of_a_command_shows_its_options_and_choices(command, options, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert [option for option in options if option not in text] == []


def test_cfg_prints_the_configuration_and_makes_nothing(place, capsys):
    text = shown(["shac", "seed=4", "--cfg", "iterations=3"], capsys)
    assert "\nseed: 4\n" in text and "\niterations: 3\n" in text and not list(place.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shac", "iteratons=3"], "no option iteratons; did you mean iterations?"),
        (["shac", "env=analytic/cartpol"], "no env=analytic/cartpol; did you mean analytic/cartpole"),
        (["pretrain", "model=6B"], "there is no model=6B; expected one of grounded, small, custom, 5M, 19M, 48M, 317M"),
        (
            ["shac", "env=gym/pendulum"],
            "SHAC follows the gradient of a differentiable simulator, which Pendulum",
        ),
        (["record"], "run is needed and was not given: add run=..."),
        (["simulator", "logger=tensorbord"], "logger must be one of csv, tensorboard, wandb, found 'tensorbord'"),
        (["simulator", "select=bset"], "select must be last or best, found 'bset'"),
        (["simulator", "collector.workers=3"], "collector.workers must divide the 4 envs, found 3"),
        (["simulator", f"resume={RUNS / 'shac' / 'interrupted'}"], "is one of shac, not of online"),
        (["report"], "report takes the folder of a run and nothing else"),
        (["report", "run=nowhere"], "No run in nowhere"),
        (["report", f"run={RUNS / 'shac' / 'interrupted'}"], "has not ended: torchrl-pwm shac resume="),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(arguments, message, place):
    tiny = [] if arguments[0] in ("report", "record") or "resume" in arguments[1] else TINY
    with pytest.raises(SystemExit) as end:
        main([*arguments, *tiny])
    assert message in str(end.value) and not list(place.iterdir())


def test_report_prints_the_result_of_a_finished_run(place, capsys):
    shutil.copytree(RUNS / "finished" / "shac", place / "run")
    text = shown(["report", "run=run"], capsys)
    assert "hand-written controller" in text and text.endswith("run/summary.json\n")


def test_an_interrupted_run_says_how_it_goes_on(place):
    command = [sys.executable, "-m", "torchrl_pwm.runs.cli", "shac"]
    environment = {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[2])}
    process = subprocess.Popen(
        [*command, *TINY, "iterations=100000", "folder=run"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Where the tests run in the background, an interruption is ignored, which a child inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not (place / "run" / "checkpoint" / "checkpoint.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert error.strip().splitlines()[-1] == "Interrupted. It goes on with: torchrl-pwm shac resume=run"
    assert json.loads((place / "run" / "checkpoint" / "checkpoint.json").read_text())["step"] > 0


def test_without_hydra_the_console_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install \"torchrl-pwm\[runs\]\""):
        runs.main()
