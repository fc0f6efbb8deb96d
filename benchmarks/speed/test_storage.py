"""Speed and memory of reading data sets, up to the size of MT80. Run with ``make speed``.

The data sets are holes in sparse files: they take no disk, but every page that is read takes memory in the system's
cache, like a page of a file that is cached.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.speed.stores import HotReplay, in_turn, start_reader, wait_for_line, write_sparse_store
from torchrl_pwm._utils.devices import one_thread, torch_threads
from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay, collect_dataset

ROWS_PER_TASK = {"1 M": 125, "20 M": 2475, "550 M": 68_125}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files and /proc")


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    stores = {name: write_sparse_store(folder / name, rows) for name, rows in ROWS_PER_TASK.items()}
    stores["550 M float16"] = write_sparse_store(folder / "half", ROWS_PER_TASK["550 M"], "float16")
    return stores


def report(benchmark: Any, measured: dict[str, Any]) -> None:
    benchmark.extra_info.update(measured)
    print(f"\n{benchmark.name}")
    for name, value in measured.items():
        print(f"    {name}: {value}")


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


@pytest.mark.parametrize("batches", [40, 300])
def test_sampling_at_any_size(benchmark: Any, stores: dict[str, Path], batches: int) -> None:
    """512 slices of 16 transitions (17 observations) that are in the system's cache: from a few places, from many."""
    hot = {name: HotReplay(root, batches) for name, root in stores.items()}
    measured = in_turn([x.round for x in hot.values()])
    benchmark.pedantic(hot["550 M"].replay.sample, rounds=3)
    report(benchmark, {name: rounded(times) for name, times in zip(hot, measured, strict=True)})


def test_sampling_with_two_threads(benchmark: Any, stores: dict[str, Path]) -> None:
    with torch_threads(2):
        hot = HotReplay(stores["550 M"])
        (measured,) = in_turn([hot.round])
        benchmark.pedantic(hot.replay.sample, rounds=3)
    report(benchmark, {"550 M": rounded(measured)})


def test_opening(benchmark: Any, stores: dict[str, Path]) -> None:
    def opened() -> list[float]:
        start = time.perf_counter()
        TDMPC2ExperienceReplay(stores["550 M"], 512, slice_len=16)
        return [time.perf_counter() - start]

    benchmark.pedantic(opened, rounds=10)
    report(benchmark, rounded(in_turn([opened], rounds=20)[0]))


@pytest.mark.parametrize("readers", [1, 2, 4])
def test_readers_at_once(benchmark: Any, stores: dict[str, Path], readers: int) -> None:
    """Processes that read the same data set at the same time, one thread each."""
    batches = 800

    def read() -> list[dict[str, float]]:
        processes = [start_reader("read", stores["550 M"], batches) for _ in range(readers)]
        for process in processes:
            wait_for_line(process)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        measured = [wait_for_line(process) for process in processes]
        for process in processes:
            process.communicate()
        return measured

    measured = benchmark.pedantic(read, rounds=1)
    rate = sum(512 * batches / reader["seconds"] for reader in measured)
    each = [round(reader["median_ms"], 3) for reader in measured]
    report(benchmark, {"median ms of each": each, "slices a second, all together": round(rate)})


@pytest.mark.parametrize("batches", [100, 2000])
def test_memory_of_training(benchmark: Any, stores: dict[str, Path], batches: int) -> None:
    """Peak of a process that updates a world model and samples all over the data; 16 GiB are allowed."""

    def train() -> dict[str, int]:
        process = start_reader("train", stores["550 M"], batches)
        measured = wait_for_line(process)
        process.communicate()
        return measured

    measured = benchmark.pedantic(train, rounds=1)
    report(benchmark, {f"MiB after {batches} batches": measured})
    assert measured["VmHWM"] < 16 << 10


def test_float16_on_disk(benchmark: Any, tmp_path: Path) -> None:
    """What is lost when observations are rounded to float16, in parts of each entry's spread within its task."""
    tasks = {"walker-run": "random", "cheetah-run": "random", "mw-reach": "scripted", "mw-drawer-close": "scripted"}

    def collect() -> EpisodeStore:
        return collect_dataset(list(tasks), tmp_path / "d", episodes=3, behavior=tasks, workers=1, progress=False)

    store = benchmark.pedantic(collect, rounds=1)
    measured = {}
    for rows in store.manifest.tasks:
        observation = store.observation[rows.start : rows.stop].astype(np.float64).reshape(-1, 39)
        spread = observation.std(0)
        moving = spread > 1e-6
        error = np.abs(observation - observation.astype(np.float16))[:, moving] / spread[moving]
        measured[rows.name] = {
            "mean": round(float(error.mean()), 5),
            "worst entry": round(float(error.mean(0).max()), 4),
        }
    report(benchmark, measured)
