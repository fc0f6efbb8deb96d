"""Sparse data sets of any size that take no disk, their readers, and the memory that these take."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay
from torchrl_pwm.data.store.manifest import MANIFEST_NAME, FieldRecord, Manifest, TaskRows
from torchrl_pwm.envs.tasks import MT80

SLICES, TRANSITIONS = 512, 16


def write_sparse_store(root: Path, rows_per_task: int, dtype: str = "float32") -> Path:
    """A data set in the shape of MT80 whose files are one hole each. 68,125 rows a task are 550 M entries, 102 GB."""
    root.mkdir(parents=True)
    rows, length = rows_per_task * len(MT80), 100
    width = MT80.observation_dim + MT80.action_dim + 1
    fields = {
        "steps": FieldRecord("steps.bin", dtype, (rows, length + 1, width), "0" * 64),
        "returns": FieldRecord("returns.bin", "float64", (rows,), "0" * 64),
    }
    for field in fields.values():
        with open(root / field.file, "wb") as file:
            file.truncate(field.size)
    mean, std = (0.0,) * MT80.observation_dim, (1.0,) * MT80.observation_dim
    tasks = tuple(
        TaskRows(spec.name, spec.index, start, start + rows_per_task, 0.0, 0.0, 0.0, mean, std)
        for spec, start in zip(MT80, range(0, rows, rows_per_task))
    )
    manifest = Manifest("mt80", MT80.names, length, MT80.observation_dim, MT80.action_dim, fields, tasks, {})
    (root / MANIFEST_NAME).write_text(manifest.to_json())
    return root


class HotReplay:
    """Draws the same batches again and again: from all over the data, but of pages that are in the system's cache."""

    def __init__(self, root: Path, batches: int = 40, *, slices: int = SLICES, transitions: int = TRANSITIONS) -> None:
        self.replay = TDMPC2ExperienceReplay(root, slices, slice_len=transitions)
        self.batches = batches
        self.round()

    def round(self) -> list[float]:
        """Seconds of each batch, in one go through them."""
        self.replay.sampler.generator.manual_seed(0)
        times = []
        for _ in range(self.batches):
            start = time.perf_counter()
            self.replay.sample()
            times.append(time.perf_counter() - start)
        return times


def bare_reads(store: EpisodeStore, slices: int, transitions: int) -> Callable[[], None]:
    """A function that reads as many slices, from places of its own, into memory that is there, and nothing else."""
    field = store.manifest.fields["steps"]
    rows, steps, width = field.shape
    size = np.dtype(field.dtype).itemsize * width
    generator = np.random.default_rng(0)
    starts = generator.integers(rows, size=slices) * steps + generator.integers(steps - transitions, size=slices)
    memory = np.empty((slices, (transitions + 1) * size), np.uint8)
    file = open(Path(store.root) / field.file, "rb", buffering=0)  # noqa: SIM115, closed with the function
    places = [(row, start * size) for row, start in zip(memory, starts.tolist())]

    def run() -> None:
        for row, place in places:
            os.preadv(file.fileno(), [row], place)

    return run


def in_turn(functions: Sequence[Callable[[], list[float]]], rounds: int = 5) -> list[dict[str, float]]:
    """Milliseconds of functions that are called in turn, so that other work on the machine slows all of them alike."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for values, function in zip(times, functions, strict=True):
            values.extend(function())
    return [
        {"median_ms": 1e3 * statistics.median(values), "best_10%_ms": 1e3 * sorted(values)[len(values) // 10]}
        for values in times
    ]


def memory() -> dict[str, int]:
    """MiB of this process: VmHWM is the peak of its resident memory, RssAnon its own, RssFile mapped files."""
    status = Path("/proc/self/status").read_text()
    return {
        key: int(match[1]) >> 10
        for key in ("VmHWM", "RssAnon", "RssFile")
        if (match := re.search(rf"{key}:\s+(\d+) kB", status))
    }


def start_reader(command: str, *arguments: object) -> subprocess.Popen[str]:
    """``read`` or ``train`` of this module in a process of its own; it prints one line of JSON."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.speed.stores", command, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str]) -> Any:
    """The next line that a reader prints."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def _read(root: str, batches: str) -> None:
    """Draws cached batches for as long as told, after all readers are ready."""
    hot = HotReplay(Path(root))
    print("true", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    times = [seconds for _ in range(int(batches) // hot.batches) for seconds in hot.round()]
    print(json.dumps({"median_ms": 1e3 * statistics.median(times), "seconds": time.perf_counter() - start}))


def _train(root: str, batches: str) -> None:
    """Updates a world model on places all over the data, never the same, and reads from the system what it took."""
    from torchrl_pwm import PWMWorldModel, PWMWorldModelLoss
    from torchrl_pwm.trainers import WorldModelOptimizationStepper

    model = PWMWorldModel.from_preset("5M", observation_dim=39, action_dim=6, num_tasks=80)
    stepper = WorldModelOptimizationStepper(PWMWorldModelLoss(model), iterations=1000)
    replay = TDMPC2ExperienceReplay(root, SLICES, slice_len=TRANSITIONS)
    for i in range(int(batches)):
        batch = replay.sample()
        if i < 3:
            stepper.update(batch)
    print(json.dumps(memory()))


if __name__ == "__main__":
    {"read": _read, "train": _train}[sys.argv[1]](*sys.argv[2:])
