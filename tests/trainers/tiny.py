"""Small data, networks and trainers, and interruptions at chosen places."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.record.loggers import CSVLogger

from torchrl_pwm import (
    PWMLoss,
    PWMTrainer,
    PWMWorldModel,
    PWMWorldModelLoss,
    TDMPC2ExperienceReplay,
    WorldModelTrainer,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.data import EpisodeStoreWriter
from torchrl_pwm.trainers import PWMOptimizationStepper, ReplayTrainer, WorldModelOptimizationStepper

Kind = Literal["model", "policy"]
KINDS: tuple[Kind, ...] = ("model", "policy")
BUFFERS = ("store", "store with prefetch", "random", "own generator", "without replacement")
ITERATIONS = 7


def write_store(
    root: Path, *, length: int = 12, seed: int = 0, tasks: Mapping[str, int] | None = None, **fields: Any
) -> Path:
    """Rows of random numbers: three each of a DMControl and a Meta-World task, or as many as each of some tasks has."""
    draws = np.random.default_rng(seed)
    tasks = tasks or {"pendulum-swingup": 3, "mw-reach": 3}
    with EpisodeStoreWriter(root, "mt80", tasks, row_length=length) as writer:
        for task, rows in tasks.items():
            observation = draws.standard_normal((rows, length + 1, 39)).astype(np.float32)
            action = draws.uniform(-1, 1, (rows, length, 6)).astype(np.float32)
            writer.write(task, observation, action, draws.uniform(0, 2, (rows, length)).astype(np.float32))
    return root


def sequences(count: int = 24, time: int = 4) -> TensorDictBase:
    """[count, time] transitions of both tasks."""
    draws = torch.Generator().manual_seed(5)
    size = (count, time)
    following = TensorDict(
        {
            "observation": torch.randn(*size, 39, generator=draws),
            "reward": torch.rand(*size, 1, generator=draws),
        },
        size,
    )
    return TensorDict(
        {
            "observation": torch.randn(*size, 39, generator=draws),
            "action": torch.rand(*size, 6, generator=draws) * 2 - 1,
            "task": torch.randint(0, 80, (count, 1), generator=draws).expand(size).clone(),
            "next": following,
        },
        size,
    )


def make_buffer(name: str, root: Path) -> ReplayBuffer:
    if name.startswith("store"):
        return TDMPC2ExperienceReplay(root, 6, slice_len=4, seed=2, prefetch=2 if "prefetch" in name else None)
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(24),
        sampler=SamplerWithoutReplacement() if name == "without replacement" else None,
        batch_size=6,
        generator=torch.Generator().manual_seed(9) if name == "own generator" else None,
    )
    buffer.extend(sequences())
    return buffer


def make_model() -> PWMWorldModel:
    return PWMWorldModel(
        39, 6, latent_dim=16, encoder_units=(16,), units=(16, 16), num_bins=11, num_tasks=80, task_dim=4
    )


def make_policy_loss(**options: Any) -> PWMLoss:
    actor, value = make_pwm_actor(16, 6, units=(16,)), make_value_ensemble(16, units=(16,), num_nets=2)
    return PWMLoss(actor, value, make_model(), horizon=3, **options)


def make_trainer(kind: Kind, buffer: ReplayBuffer, folder: Path | None = None, **options: Any) -> ReplayTrainer:
    """A trainer whose networks depend on nothing but ``kind``; with a folder it logs and saves there."""
    options = {"iterations": ITERATIONS, "log_interval": 1, "save_interval": 2, "progress_bar": False, **options}
    if folder is not None:
        options.setdefault("logger", CSVLogger("log", log_dir=str(folder)))
        options.setdefault("save_folder", folder / "checkpoint")
    torch.manual_seed(3)
    device = options.get("device") or "cpu"
    device = "cpu" if device == "meta" else device  # a place for batches alone
    if kind == "model":
        loss = PWMWorldModelLoss(make_model().to(device))
        stepper = WorldModelOptimizationStepper(loss, iterations=options["iterations"], final_lr=1e-5)
        return WorldModelTrainer(loss, buffer, optimization_stepper=stepper, **options)
    loss = make_policy_loss().to(device)
    loss.world_model.to(device)
    stepper = PWMOptimizationStepper(loss, iterations=options["iterations"], critic_iterations=2)
    return PWMTrainer(loss, buffer, optimization_stepper=stepper, **options)


def draw() -> dict[str, float]:
    """An evaluation that uses up random numbers."""
    return {"real_return": float(torch.rand(()))}


class Interrupted(Exception):
    pass


def interrupt() -> None:
    raise Interrupted


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt_at(trainer: ReplayTrainer, place: str, count: int, action: Callable[[], None] = interrupt) -> None:
    """Lets ``action`` happen at the ``count``-th visit to a place of the training loop."""
    stepper: Any = trainer.optimization_stepper
    owner, name = {
        "sample": (trainer.replay_buffer, "sample"),
        # In the middle of an update: after the actor's step, or before the model's.
        "update": (stepper, "critic_pass") if isinstance(trainer, PWMTrainer) else (stepper.loss_module, "losses"),
        "evaluate": (trainer, "evaluate"),
        "save": (os, "replace"),
    }[place]
    visits = 0
    original = getattr(owner, name)

    def visit(*args: Any, **kwargs: Any) -> Any:
        nonlocal visits
        visits += 1
        if visits == count:
            if owner is os:
                os.replace = original
            action()
        return original(*args, **kwargs)

    setattr(owner, name, visit)


def run(kind: Kind, buffer: str, root: Path, folder: Path, place: str | None = None, count: int = 0, **how: Any) -> Any:
    """Trains, from the folder's checkpoint if there is one; returns the trainer."""
    replay = make_buffer(buffer, root)
    torch.manual_seed(17)
    trainer = make_trainer(kind, replay, folder, evaluate=draw, eval_interval=2)
    trainer.resume(required=False)
    if place is not None:
        interrupt_at(trainer, place, count, **how)
    trainer.train()
    return trainer


def metrics_of(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.glob("log/scalars/*.csv"))}


def assert_same(found: Any, expected: Any, where: str = "state") -> None:
    """Equality bit for bit of nested containers of tensors and plain values."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, Mapping):
        assert set(found) == set(expected), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert found == expected, where


def main() -> None:
    """``python -m tests.trainers.tiny KIND ROOT FOLDER PLACE COUNT``: a run that kills itself."""
    import sys

    kind, root, folder, place, count = sys.argv[1:]
    torch.set_num_threads(1)
    run(kind, "store", Path(root), Path(folder), place, int(count), action=kill)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
