"""What checkpoints of a world model's training cost: bytes, seconds, and their share of the training's time.

    python -m benchmarks.reliability.checkpoint_cost [PRESET ...]

Each preset in a process of its own, on one thread of the CPU. A checkpoint is a whole one, as a run writes it: weights,
moments of Adam, schedules, random numbers, the place of the sampler. Updates are those of ``torchrl-pwm pretrain`` with
its defaults, but of SEQUENCES sequences instead of 1024: those of a run take longer, so the share found here is the
most that it can be on this machine.
Table and numbers go to ``benchmarks/results/checkpoint_cost.md`` and ``.json``.
"""

from __future__ import annotations

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer

from benchmarks.machine import machine
from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss
from torchrl_pwm._utils.checkpoint import load_checkpoint
from torchrl_pwm.envs import MT80
from torchrl_pwm.trainers import WorldModelTrainer

RESULTS = Path(__file__).parents[1] / "results" / "checkpoint_cost.md"
PRESETS = ("5M", "48M", "317M")
SEQUENCES = 16
STEPS, INTERVAL = 16, 5000  # of torchrl_pwm/runs/conf/pretrain.yaml
#: Share of a training's time that checkpoints may take.
ALLOWED = 0.02
UPDATES, SAVES = 3, 3


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(measured(sys.argv[2])))
        return
    found = {}
    for preset in sys.argv[1:] or PRESETS:
        command = [sys.executable, "-m", "benchmarks.reliability.checkpoint_cost", "--alone", preset]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[preset] = json.loads(done.stdout.splitlines()[-1])
        print(row(preset, found[preset]), flush=True)
        write(found)


def sequences() -> ReplayBuffer:
    """A replay that gives sequences [SEQUENCES, STEPS] of random numbers, of the sizes of MT80."""
    torch.manual_seed(0)
    shape = (SEQUENCES, STEPS)
    following = {
        "observation": torch.randn(*shape, MT80.observation_dim),
        "reward": torch.rand(*shape, 1),
    }
    data = {
        "observation": torch.randn(*shape, MT80.observation_dim),
        "action": torch.rand(*shape, MT80.action_dim) * 2 - 1,
        "task": torch.randint(len(MT80), (SEQUENCES, 1)).expand(shape).clone(),
        "next": TensorDict(following, shape),
    }
    replay = ReplayBuffer(storage=LazyTensorStorage(SEQUENCES), batch_size=SEQUENCES)
    replay.extend(TensorDict(data, shape))
    return replay


def measured(preset: str) -> dict[str, Any]:
    """Parameters, bytes of a checkpoint, and seconds of each update, save and load."""
    model = PWMWorldModel.from_preset(
        preset, observation_dim=MT80.observation_dim, action_dim=MT80.action_dim, num_tasks=len(MT80)
    )
    with tempfile.TemporaryDirectory(dir=".") as folder:
        options: dict[str, Any] = {"iterations": UPDATES + 1, "progress_bar": False}
        trainer = WorldModelTrainer(PWMWorldModelLoss(model), sequences(), **options)
        updates = []
        for _ in trainer.remaining():
            begin = time.perf_counter()
            trainer.optimization_stepper.step(trainer, trainer.sample())
            updates.append(time.perf_counter() - begin)
        saves = []
        for number in range(SAVES):
            shift(model)  # other weights: the file of a step that was written before would be there already
            trainer.iteration = number
            begin = time.perf_counter()
            trainer.write_checkpoint(Path(folder))
            saves.append(time.perf_counter() - begin)
        size = max(file.stat().st_size for file in Path(folder).glob("*.pt"))
        begin = time.perf_counter()
        load_checkpoint(folder)
        return {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "bytes": size,
            "seconds_update": updates[1:],  # the first makes room
            "seconds_save": saves,
            "seconds_load": time.perf_counter() - begin,
        }


@torch.no_grad()
def shift(model: torch.nn.Module) -> None:
    next(model.parameters()).add_(1e-6)


def share(found: dict[str, Any]) -> float:
    """Of a training with the default interval and updates as short as these, the time that checkpoints take."""
    save = statistics.median(found["seconds_save"])
    return save / (statistics.median(found["seconds_update"]) * INTERVAL + save)


def row(preset: str, found: dict[str, Any]) -> str:
    update, save = statistics.median(found["seconds_update"]), statistics.median(found["seconds_save"])
    # The longest update in which checkpoints of this length are still within what is allowed.
    shortest = save * (1 - ALLOWED) / ALLOWED / INTERVAL
    part = share(found)
    within = "yes" if part <= ALLOWED else "**no**"
    return (
        f"| {preset} | {found['parameters'] / 1e6:.1f} M | {found['bytes'] / 1e6:,.0f} MB | {save:.2f} s "
        f"({min(found['seconds_save']):.2f} to {max(found['seconds_save']):.2f}) | {found['seconds_load']:.2f} s | "
        f"{update:.2f} s | {part:.3%} | {within} | {shortest * 1e3:.1f} ms |"
    )


def write(found: dict[str, dict[str, Any]]) -> None:
    about = machine(torch.device("cpu"))
    command = "python -m benchmarks.reliability.checkpoint_cost"
    record = {"command": command, "date": str(datetime.date.today()), "torch": torch.__version__, **about}
    settings = {"sequences": SEQUENCES, "steps": STEPS, "interval": INTERVAL}
    content = {**record, **settings, "presets": found}
    RESULTS.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    lines = [
        "# What checkpoints cost",
        "",
        f"`{command}`, {record['date']}, {about['processor']}, {about['system']},",
        f"torch {torch.__version__}, one thread.",
        "A checkpoint of the training of a world model of MT80: weights, moments of Adam, schedules, random numbers, "
        "written, flushed to disk,",
        f"with its checksum; median of {SAVES}. Updates of {SEQUENCES} sequences of {STEPS} steps, median of {UPDATES},"
        " and a checkpoint every",
        f"{INTERVAL:,} updates, as by default. The default batch has 1024 sequences and takes longer: the share is "
        "the most that it can be here.",
        "",
        "| preset | parameters | bytes | a checkpoint (from, to) | reading it | an update | "
        "share of the time, at most | "
        f"within {ALLOWED:.0%} | shortest update within {ALLOWED:.0%} |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(preset, each) for preset, each in found.items()),
        "",
        "The last column is for other machines: where updates take less than this, and checkpoints as long as here, "
        f"they take more than {ALLOWED:.0%}",
        "of the time, and `world_model.save_interval` should be larger.",
    ]
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
