"""Times of the parts of PWM and TD-MPC2, each as a ratio to the bare work it cannot avoid.

    make speed                                    # small sizes, CPU or GPU; a few minutes
    make speed OPTIONS="--size paper --record"    # 48M and published batches; writes benchmarks/results
    make speed OPTIONS="-k 'plan and eager'"

Nothing here fails for being slow.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed.cases import CASES, Bench
from benchmarks.speed.counting import Counts, count
from benchmarks.speed.record import Result
from benchmarks.speed.sizes import SIZES
from benchmarks.speed.variants import VARIANTS, Variant, fresh, skipped_graphs

FAST_ROUNDS = 5  # times as many
WARM_UP = 3  # compiles, and records CUDA graphs


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CASES)
def test_speed(
    benchmark: Any,
    name: str,
    variant: str,
    request: pytest.FixtureRequest,
    device: torch.device,
    results: list[Result],
    tmp_path: Path,
) -> None:
    options, entry = request.config.option, CASES[name]
    labels = {"case": name, "what": entry.what, "variant": variant, "against": entry.against}
    way = Variant(variant, device, options.backend)
    reason = way.obstacle(entry.compiles)
    if reason is not None:
        results.append(Result(**labels, remark=reason))
        pytest.skip(reason)
    fresh()
    case = entry.build(Bench(SIZES[options.size], device, tmp_path, way))
    bare_times: list[float] = []
    counts = counted(case.run, device) if variant == "eager" else None

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def run_bare() -> None:
        synchronize()
        start = time.perf_counter()
        case.bare()
        synchronize()
        bare_times.append(time.perf_counter() - start)

    def run() -> None:
        case.run()
        synchronize()

    # The bare work is timed before each round, so that other work on the machine slows both alike.
    rounds = options.rounds * (FAST_ROUNDS if entry.fast else 1)
    benchmark.pedantic(run, setup=run_bare, rounds=rounds, warmup_rounds=WARM_UP)
    if benchmark.stats is None:  # --benchmark-disable
        return
    times = list(benchmark.stats.stats.data)
    bare_times = bare_times[-len(times) :]
    gflop = sum(product.flops for product in case.products) / 1e9
    skipped = skipped_graphs() if variant == "CUDA graphs" else 0
    result = Result(
        **labels,
        seconds=statistics.median(times),
        bare_seconds=statistics.median(bare_times),
        ratio=statistics.median(own / bare for own, bare in zip(times, bare_times, strict=True)),
        rounds=len(times),
        gflop=gflop or None,
        remark=f"{skipped} of its graphs ran without" if skipped else "",
        quartiles=quartiles(times),
        launches=counts and counts.launches,
        host_reads=counts and counts.host_reads,
    )
    benchmark.extra_info.update(ratio=result.ratio, bare_seconds=result.bare_seconds)
    results.append(result)


def counted(run: Callable[[], object], device: torch.device) -> Counts:
    """Launches and host reads of a second run; a first one reads more."""
    run()
    with torch.backends.mkldnn.flags(enabled=False) if device.type == "cpu" else nullcontext():
        return count(run, device)


def quartiles(times: Sequence[float]) -> tuple[float, float]:
    """The middle half of the times lies between these."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return low, high
