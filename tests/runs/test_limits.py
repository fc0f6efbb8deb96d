"""Wrong values, missing packages and devices are named before a run is begun, and leave nothing behind."""

from __future__ import annotations

import shlex
import sys

import pytest

pytest.importorskip("hydra")

from omegaconf import OmegaConf

from torchrl_pwm._utils.extras import how_to_install
from torchrl_pwm._utils.ranges import option_rule, option_values
from torchrl_pwm.runs.cli import COMMANDS, command_config, limits, main

#: What may be anything: paths, names that are looked up elsewhere, and entries of a TensorDict.
FREE = {"_target_", "in_key", "out_key", "init_key", "task", "task_set", "preset", "checkpoint", "root", "folder"}
FREE |= {
    "run",
    "resume",
    "out",
    "device",
    "demonstrations",
    "earlier",
    "data",
    "encoder",
    "generator",
    "disagreement",
    "normalizer",
}
FREE |= {"normalizer", "model_stepper", "policy_stepper", "stepper"}
VARIANTS = {
    "mt80": [[], ["preset=from_scratch"], ["data=collect"], ["data=published"], ["data=open", "data.root=x"]],
    "tdmpc2-mt80": [[], ["data=published"], ["checkpoint=mt80.pt"]],
    "record": [["run=runs/mine"]],
    "simulator": [[], ["checkpoint=ant.pt"]],
    "offline": [["data=arm"]],
}
CONFIGURED = [name for name, command in COMMANDS.items() if command.config]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments):
    """What a command that is refused says."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return str(end.value)


@pytest.mark.parametrize("command", CONFIGURED)
def test_every_option_of_every_command_has_a_limit(command):
    for overrides in VARIANTS.get(command, [[]]):
        options = [name for name, _ in option_values(OmegaConf.to_container(command_config(command, overrides)))]
        open_ones = [
            name for name in options if option_rule(name, limits()) is None and name.split(".")[-1] not in FREE
        ]
        assert open_ones == [] and len(options) > 5


@pytest.mark.parametrize(
    "line",
    [
        "simulator select=bests -> select must be last or best, found 'bests'",
        "simulator warmup_updates=-1 -> warmup_updates must be a whole number of at least 0, found -1",
        "simulator gamma=1.5 -> gamma must be a number of at least 0 and at most 1, found 1.5",
        "shac gamma=nan -> gamma must be a number of at least 0 and at most 1, found nan",
        "simulator collector.workers=0 -> collector.workers must be a whole number of at least 1, found 0",
        "simulator save_interval=0 -> save_interval must be",
        "shac eval_interval=0 -> eval_interval must be",
        "shac log_interval=0 -> log_interval must be",
        "online collector.steps=0 -> collector.steps must be",
        "online collector.steps=2.5 -> collector.steps must be a whole number of at least 1, found 2.5",
        "online logger=tensorbord -> logger must be one of csv, tensorboard, wandb, found 'tensorbord'",
        "online replay.batch_size=0 -> replay.batch_size must be",
        "online iterations=0 -> iterations must be a whole number of at least 1, found 0",
        "online iterations=many -> iterations must be a whole number of at least 1, found 'many'",
        "online env.num_envs=0 -> env.num_envs must be",
        "online eval_episodes=0 -> eval_episodes must be",
        "online evaluation.episodes=0 -> evaluation.episodes must be",
        "online online.recent_share=2 -> online.recent_share must be",
        "online stepper.actor_lr=-1 -> stepper.actor_lr must be a number above 0, found -1",
        "online model.units=[0] -> model.units must be",
        "online model_stepper.clip=0 -> model_stepper.clip must be",
        "online progress=perhaps -> progress must be true or false, found 'perhaps'",
        "online seed=-1 -> seed must be",
        "online device=gpu -> device must be cpu, cuda or another of torch's, found 'gpu'",
        "tdmpc2-online replay.slice_len=0 -> replay.slice_len must be",
        "tdmpc2-online online.updates=0 -> online.updates must be",
        "tdmpc2-online heads.num_q=1 -> heads.num_q must be a whole number of at least 2, found 1",
        "tdmpc2-online planner.temperature=0 -> planner.temperature must be",
        "tdmpc2-online loss.entropy=new -> loss.entropy must be current or mid-2024, found 'new'",
        "mt80 extraction.value_estimator=GAE -> extraction.value_estimator must be TDLambda or TD0, found 'GAE'",
        "mt80 extraction.gamma=1.5 -> extraction.gamma must be",
        "mt80 extraction.select=bests -> extraction.select must be last or best",
        "mt80 extraction.batch_size=0 -> extraction.batch_size must be",
        "mt80 extraction.average=1 -> extraction.average must be a number of at least 0 and below 1, found 1",
        "mt80 extraction.starts.top=0 -> extraction.starts.top must be",
        "mt80 rounds.overrides.extraction.eval_interval=0 -> rounds.overrides.extraction.eval_interval must be",
        "mt80 seeds=0 -> seeds must be a whole number of at least 1, found 0",
        "mt80 workers=0 -> workers must be a whole number of at least 1, or null, found 0",
        "mt80 compare=paper -> compare must be null or published, found 'paper'",
        "mt80 data=collect data.noise=[quiet] -> data.noise must be a number of at least 0, or random, found 'quiet'",
        "mt80 data=collect data.behavior.dm_control=walk -> data.behavior.dm_control must be one of random",
        "mt80 data=collect data.episodes.dm_control=0 -> data.episodes.dm_control must be",
        "mt80 loss.reward_space=log -> loss.reward_space must be raw or symlog",
        "mt80 loss.loss_function=huber -> loss.loss_function must be one of l1, l2, smooth_l1, found 'huber'",
        "tdmpc2-mt80 training.eval_interval=0 -> training.eval_interval must be",
        "tdmpc2-mt80 evaluation.num_envs=0 -> evaluation.num_envs must be",
        "tdmpc2-mt80 planner.num_elites=500 -> num_elites (at least 1) and num_policy_rollouts",
        "make-quickstart world_model.slice_len=0 -> world_model.slice_len must be",
        "offline data=arm held_out=1 -> held_out must be a number of at least 0 and below 1, found 1",
        "offline data=arm extraction.select=bests -> extraction.select must be last or best",
        "simulator stage=test -> stage must be one of evaluation, extraction, online, found 'test'",
        "record run=x rows=0 -> rows must be a whole number of at least 1, found 0",
        "record run=x noise=2 -> noise must be a number of at least 0 and at most 1, found 2",
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(line, place):
    command, message = line.split(" -> ")
    assert message in refused(shlex.split(command)) and not list(place.iterdir())


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["shac"], "matplotlib", "plots"),
        (["simulator"], "matplotlib", "plots"),
        (["tdmpc2-online", "env=analytic/cartpole_swingup"], "matplotlib", "plots"),
        (["mt80"], "matplotlib", "plots"),
        (["mt80"], "jinja2", "plots"),
        (["mt80"], "PIL", "plots"),
        (["tdmpc2-mt80"], "matplotlib", "plots"),
        (["shac", "logger=tensorboard"], "tensorboard", "tensorboard"),
        (["online", "logger=wandb"], "wandb", "wandb"),
    ],
)
def test_a_package_that_is_needed_at_the_end_is_named_at_the_start(arguments, module, extra, place, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    message = refused([*arguments, "device=cpu"])
    assert f"needs {module}" in message and f'pip install "torchrl-pwm[{extra}]"' in message
    assert not list(place.iterdir())


def test_a_gpu_that_there_is_not_is_named(place):
    assert "device=cuda:64, but this PyTorch" in refused(["shac", "device=cuda:64"]) and not list(place.iterdir())


def test_recordings_that_are_missing_are_named_before_the_folder_is_made(place):
    small = ["env.num_envs=2", "+env.episode_length=5", "eval_episodes=1", "evaluation.episodes=1", "device=cpu"]
    assert "pretraining.data=steps" in refused(["simulator", *small, "pretraining.data=steps"])
    assert not list(place.iterdir())


def test_a_start_that_fails_leaves_no_folder(place):
    """A replay too small for one batch of its envs, which shows at the first step alone."""
    small = ["env.num_envs=8", "+env.episode_length=5", "eval_episodes=1", "evaluation.episodes=1", "device=cpu"]
    message = refused(["simulator", *small, "replay.capacity=16", "collector.random_steps=8", "progress=false"])
    assert "No slice of 16 steps fits" in message and not list(place.iterdir())


def test_the_tasks_cannot_be_had_on_python_3_13_and_it_is_said_why():
    assert how_to_install("mt80", (3, 12)) == 'pip install "torchrl-pwm[mt80]"'
    assert "cannot be had on Python 3.13: labmaze" in how_to_install("mt80", (3, 13))
    assert how_to_install("plots", (3, 13)) == 'pip install "torchrl-pwm[plots]"'
