"""What the fault suite kills, each at a size at which it takes about a second."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reliability.forks import Kind
from torchrl_pwm import collect_dataset, convert_shards, write_episodes
from torchrl_pwm._utils.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from torchrl_pwm.data import EpisodeStoreWriter

_SAVES, _WIDTH, _SHARDS = 40, 50_000, 8
_STEPS, _SHORT_ENV = 12, "ShortPendulum-v0"
_MODEL = ["model.latent_dim=16", "model.units=[16,16]", "model.encoder_units=[16]"]
_QUIET = ["progress=false", "device=cpu"]
_NETWORKS = ["actor.units=[8]", "value.units=[8]", "loss.horizon=3"]
_LOGGED = ["env.num_envs=4", "save_interval=1", "log_interval=1", "eval_interval=2", "eval_episodes=2"]
_LOGGED += ["evaluation.episodes=2", *_QUIET]
_ONLINE = ["iterations=4", "+env.episode_length=10", *_LOGGED]
_COLLECTED = ["collector.steps=5", "collector.random_steps=40", "warmup_updates=2", "replay.batch_size=6"]
_PWM = [*_COLLECTED, *_MODEL, *_NETWORKS, "replay.slice_len=4", "online.start_states=8"]
_SIMULATOR, _GYM = [*_ONLINE, *_PWM], ["iterations=6", *_LOGGED, *_PWM]
_PLANNER = "planner={num_samples: 8, num_policy_rollouts: 2, num_elites: 4, iterations: 1, horizon: 2}"
_WORLD_MODEL = [f"world_model.{option}" for option in ("iterations=6", "batch_size=8", "slice_len=4")]
_WORLD_MODEL += ["world_model.save_interval=1", "world_model.log_interval=1"]
_EXTRACTION = ["extraction.iterations=6", "extraction.batch_size=8", "extraction.save_interval=1"]
_EXTRACTION += ["extraction.log_interval=1", "extraction.eval_interval=3", "extraction.eval_episodes=1"]
_TASK = ["task=mw-reach", "data=open", "data.root=data", "model=small", *_MODEL, "model.task_dim=4", *_QUIET]


def kinds() -> dict[str, Kind]:
    """By name, everything that is killed; episodes of tasks are short in this process from here on."""
    _make_short()
    return {
        "checkpoint": Kind("saves of a checkpoint, one after the other", _save, _acknowledged, share=3),
        "conversion": Kind("`convert_shards`", _convert, _shards, share=3),
        "episodes": Kind("`write_episodes`", _write, share=3),
        "collection": Kind("`collect_dataset`, two tasks", _collect),
        "pretrain": _run("pretrain", [*_TASK[1:], "task=[pendulum-swingup,mw-reach]", *_WORLD_MODEL], _store),
        "mt80": _run(
            "mt80",
            [
                *_TASK,
                *_NETWORKS,
                *_WORLD_MODEL,
                *_EXTRACTION,
                "preset=from_scratch",
                "workers=1",
                "extraction.warm_start={behavior_updates: 4, value_updates: 1}",
                "extraction.average=0.5",
                "evaluation.episodes=1",
                "evaluation.film=0",
                "evaluation.baselines=null",
            ],
            _store,
        ),
        "offline": _run(
            "offline",
            [
                "data=data",
                *_MODEL,
                "model.task_dim=4",
                *_NETWORKS,
                *_QUIET,
                *_WORLD_MODEL,
                *_EXTRACTION,
                f"env={_SHORT_ENV}",
                "extraction.average=0.5",
                "extraction.select=best",
                "evaluation.episodes=1",
                "extraction.warm_start={behavior_updates: 2, value_updates: 1}",
                "trust_probe=false",
            ],
            _own,
        ),
        "shac": _run("shac", [*_ONLINE, "iterations=6", *_NETWORKS, "stepper.critic_iterations=1"]),
        "simulator": _run("simulator", _SIMULATOR),
        "simulator, pre-trained": _run(
            "simulator",
            [
                *_SIMULATOR,
                "pretraining.data=data",
                "pretraining.updates=6",
                "pretraining.keep=true",
                "pretraining.warm_start.behavior_updates=2",
            ],
            _steps,
        ),
        "online, Pendulum": _run("online", [*_GYM, "env=gym/pendulum", "+env.max_episode_steps=12"]),
        "online, Hopper": _run("online", [*_GYM, "env=gym/hopper", "+env.max_episode_steps=40"]),
        "tdmpc2-online": _run(
            "tdmpc2-online",
            [
                "env=analytic/cartpole_swingup",
                "collector.plan=true",
                *_ONLINE,
                *_COLLECTED,
                *_MODEL,
                _PLANNER,
                "online.updates=1",
                "replay.capacity=2000",
            ],
        ),
        "tdmpc2-mt80": _run(
            "tdmpc2-mt80",
            [
                *_TASK,
                _PLANNER,
                "training.iterations=6",
                "training.batch_size=6",
                "training.log_interval=1",
                "training.save_interval=1",
                "training.eval_interval=3",
                "training.eval_episodes=1",
                "plan=false",
                "evaluation.episodes=1",
                "evaluation.num_envs=1",
            ],
            _store,
        ),
    }


def _run(
    command: str,
    options: list[str],
    prepare: Callable[[Path], object] = lambda folder: None,
) -> Kind:
    return Kind(f"`torchrl-pwm {command}`", partial(_command, command, options), prepare)


def _command(command: str, options: list[str], folder: Path, prepared: Any) -> None:
    """As a user calls it: with its options at first, then to go on with what is in the folder."""
    from torchrl_pwm.runs.cli import main

    data = folder.parent / "data"
    if prepared is not None and not data.exists():
        data.symlink_to(prepared)
    begun = (folder / "config.yaml").exists()
    main([command, f"resume={folder.name}"] if begun else [command, *options, f"folder={folder.name}"])


def _make_short() -> None:
    """In this process: episodes of few steps, and pre-training that saves after each update."""
    import gymnasium

    from torchrl_pwm.envs import tasks
    from torchrl_pwm.runs import pwm_online

    pwm_online._PRETRAINING_LOG = pwm_online._PRETRAINING_SAVE = 1
    cut = [dataclasses.replace(task, episode_length=_STEPS) for task in tasks.MT80]
    tasks._TASK_SETS["mt80"] = tasks.TaskSet("mt80", cut)
    if _SHORT_ENV not in gymnasium.registry:
        entry = gymnasium.spec("Pendulum-v1").entry_point
        gymnasium.register(_SHORT_ENV, entry_point=entry, max_episode_steps=_STEPS)


def _acknowledged(folder: Path) -> mmap.mmap:
    """Memory of all processes: the step that was saved last, as the one that saved it was told."""
    return mmap.mmap(-1, 8)


def _save(folder: Path, told: mmap.mmap) -> None:
    """Each checkpoint follows from the one before; one that was said to be saved is there after a kill."""
    if not folder.exists():
        told[:8] = bytes(8)
    state = {"step": 0, "numbers": torch.zeros(_WIDTH, dtype=torch.float64)}
    if has_checkpoint(folder):
        state = load_checkpoint(folder)
    if state["step"] < int.from_bytes(told[:8], "little"):
        raise AssertionError("a checkpoint that was saved is gone")
    while state["step"] < _SAVES:
        step = state["step"] + 1
        draws = torch.Generator().manual_seed(step)
        numbers = state["numbers"] * 0.9 + torch.randn(_WIDTH, generator=draws, dtype=torch.float64)
        state = {"step": step, "numbers": numbers}
        save_checkpoint(folder, state, step=step)
        told[:8] = step.to_bytes(8, "little")


def _shards(folder: Path) -> list[Path]:
    """In the published layout: the first entry of a row is filler."""
    paths = []
    for number in range(_SHARDS):
        draws = torch.Generator().manual_seed(number)
        tasks = torch.tensor([0, 40, 40, 0])[:, None].expand(4, _STEPS + 1).clone()
        observation = torch.randn(4, _STEPS + 1, 39, generator=draws)
        action = torch.rand(4, _STEPS + 1, 6, generator=draws) * 2 - 1
        shard = {
            "obs": observation,
            "action": action,
            "reward": torch.rand(4, _STEPS + 1, generator=draws),
            "task": tasks,
        }
        shard["action"][:, 0], shard["reward"][:, 0] = float("nan"), float("nan")
        paths.append(folder / f"chunk_{number}.pt")
        torch.save(shard, paths[-1])
    return paths


def _convert(folder: Path, shards: list[Path]) -> None:
    if not folder.exists():
        convert_shards(shards, folder, task_set="mt80", progress=False)


def _episodes(count: int) -> list[dict[str, Any]]:
    draws = np.random.default_rng(0)
    return [
        {"observation": draws.normal(size=(21, 3)), "action": draws.uniform(-1, 1, (20, 1)), "reward": np.zeros(20)}
        for _ in range(count)
    ]


def _write(folder: Path, made: Any) -> None:
    if not folder.exists():
        write_episodes(folder, _episodes(60))


def _collect(folder: Path, made: Any) -> None:
    collect_dataset(
        ["pendulum-swingup", "mw-reach"],
        folder,
        behavior={"pendulum-swingup": "random", "mw-reach": "scripted"},
        episodes={"pendulum-swingup": 10, "mw-reach": 10},
        seed=3,
        workers=1,
        progress=False,
    )


def _store(folder: Path) -> Path:
    """Rows of two tasks, of random numbers."""
    draws, tasks = np.random.default_rng(0), {"pendulum-swingup": 3, "mw-reach": 3}
    with EpisodeStoreWriter(folder / "data", "mt80", tasks, row_length=_STEPS) as writer:
        for task, rows in tasks.items():
            observation = draws.standard_normal((rows, _STEPS + 1, 39)).astype(np.float32)
            action = draws.uniform(-1, 1, (rows, _STEPS, 6)).astype(np.float32)
            writer.write(task, observation, action, draws.uniform(0, 2, (rows, _STEPS)).astype(np.float32))
    return folder / "data"


def _own(folder: Path) -> Path:
    write_episodes(folder / "data", _episodes(4), action_low=-2.0, action_high=2.0)
    return folder / "data"


def _steps(folder: Path) -> Path:
    from torchrl_pwm.data import record_steps
    from torchrl_pwm.envs.random_policy import RandomPolicy
    from torchrl_pwm.envs.simulators import AnalyticEnv

    env = AnalyticEnv("cartpole_swingup", 4)
    record_steps(RandomPolicy(1, 0), env, 30, noise=0.0, seed=0, progress=False).memmap(folder / "data")
    return folder / "data"
