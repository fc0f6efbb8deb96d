"""A run of every kind is trained longer from where it ended, and a trainer too, or they say why not."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest

pytest.importorskip("hydra")

import torch
from omegaconf import OmegaConf

from tests.runs.conftest import COMMANDS, RUNS
from torchrl_pwm import load_policy
from torchrl_pwm._utils.checkpoint import load_checkpoint
from torchrl_pwm.evaluation import read_metrics
from torchrl_pwm.runs.cli import main
from torchrl_pwm.runs.load import read_config

MT80 = pytest.mark.skipif(importlib.util.find_spec("dm_control") is None, reason="dm_control is not installed")
OPTIONS = {
    "shac": "iterations",
    "pwm_online": "iterations",
    "tdmpc2_online": "iterations",
    "mt80": "extraction.iterations",
    "tdmpc2_mt80": "training.iterations",
}
PARTS = {"mt80": "policies/pendulum-swingup/seed-0", "tdmpc2_mt80": "model"}
KINDS = [pytest.param(name, marks=[MT80] if name in PARTS else []) for name in OPTIONS]


@pytest.fixture
def copied(finished, tmp_path):
    """The folder of a finished run that a test may change."""

    def copy(name):
        return shutil.copytree(finished(name), tmp_path / name)

    return copy


@pytest.mark.parametrize("name", KINDS)
def test_a_finished_run_goes_on_with_more_iterations(name, copied):
    folder = copied(name)
    option, part = OPTIONS[name], folder / PARTS.get(name, "")
    before = OmegaConf.select(read_config(folder), option)
    old = json.loads((folder / "summary.json").read_text())
    weights = load_checkpoint(part / "checkpoint")
    main([COMMANDS[name], f"resume={folder}", f"{option}={before + 3}"])
    assert OmegaConf.select(read_config(folder), option) == before + 3
    state = load_checkpoint(part / "checkpoint")
    assert (weights["iteration"], state["iteration"]) == (before, before + 3)
    assert json.loads((folder / "summary.json").read_text()) != old
    assert json.loads((folder / f"earlier/{option}-{before}/summary.json").read_text()) == old
    steps, _ = read_metrics(part)["training_seconds"]
    assert max(steps) == before + 3 and min(steps) < before
    assert load_policy(folder, "cpu") is not None
    further = ["tasks_per_batch=2"] if name == "mt80" else []  # how it goes on is free
    main([COMMANDS[name], f"resume={folder}", *further])  # which has nothing left to do
    assert load_checkpoint(part / "checkpoint")["iteration"] == before + 3


def test_an_interrupted_run_goes_on_to_more_iterations(tmp_path):
    folder = shutil.copytree(RUNS / "shac" / "interrupted", tmp_path / "run")
    main(["shac", f"resume={folder}", f"iterations={read_config(folder).iterations + 2}"])
    content = json.loads((folder / "summary.json").read_text())
    assert content["iterations"] == read_config(folder).iterations == 8


def test_learning_rates_are_those_of_a_run_that_was_so_long_from_the_start(copied):
    folder = copied("shac")
    config = read_config(folder)
    main(["shac", f"resume={folder}", f"iterations={2 * config.iterations}", "log_interval=1"])
    steps, rates = read_metrics(folder)["actor_lr"]
    first, last = config.stepper.actor_lr, config.stepper.final_lr
    for step, rate in zip(steps, rates):
        if step > config.iterations:
            assert rate == pytest.approx(first + (last - first) * (step - 1) / (2 * config.iterations))


@MT80
def test_a_world_model_that_is_trained_longer_gets_new_policies(copied):
    folder = copied("mt80")
    before = torch.load(folder / "world_model/world_model.pt", weights_only=True)["model"]
    updates = read_config(folder).world_model.iterations
    main(["mt80", f"resume={folder}", f"world_model.iterations={updates + 2}"])
    assert load_checkpoint(folder / "world_model/checkpoint")["iteration"] == updates + 2
    after = torch.load(folder / "world_model/world_model.pt", weights_only=True)["model"]
    assert any((before[key] != after[key]).any() for key in before)
    assert (folder / f"earlier/world_model.iterations-{updates}/policies/pendulum-swingup/seed-0/policy.pt").exists()
    assert load_checkpoint(folder / PARTS["mt80"] / "checkpoint")["iteration"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["iterations=3"],
            r"iterations: the run has 6, the command says 3.*More iterations than it has train it longer",
        ),
        (["iterations=9", "seed=5"], "seed: the run has 0, the command says 5"),
    ],
)
def test_a_run_is_not_made_shorter_or_another(arguments, message, copied):
    folder = copied("shac")
    with pytest.raises(SystemExit, match=message):
        main(["shac", f"resume={folder}", *arguments])
    assert (folder / "summary.json").exists()


def test_a_run_that_kept_no_checkpoint_says_so(tmp_path):
    folder = shutil.copytree(RUNS / "finished" / "shac", tmp_path / "run")
    with pytest.raises(SystemExit, match=r"has ended, and it holds no checkpoint to go on from"):
        main(["shac", f"resume={folder}", "iterations=50"])
    assert (folder / "summary.json").exists()
