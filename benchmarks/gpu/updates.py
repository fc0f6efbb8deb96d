"""Time, throughput and memory of updates on fixed batches.

    python -m benchmarks.gpu.updates pwm --size paper --batch 512 --updates 300
    python -m benchmarks.gpu.updates model --size tiny --batch 4 --updates 4 --device cpu

FLOP are those of the matrix products that an update cannot avoid.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.cases import Bench
from benchmarks.speed.sizes import SIZES
from benchmarks.speed.variants import VARIANTS, Variant

_BUILD = {
    "pwm": Bench.pwm_update,
    "pwm-8": lambda bench: bench.pwm_updates(8),
    "model": Bench.model_update,
    "tdmpc2": Bench.tdmpc2_update,
}
_BATCH = {"pwm": "start_states", "pwm-8": "start_states", "model": "sequences", "tdmpc2": "tdmpc2_sequences"}
_BLOCKS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=sorted(_BUILD))
    parser.add_argument("--size", choices=sorted(SIZES), default="paper")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--variant", choices=VARIANTS, help="default: eager, on CUDA CUDA graphs")
    options = parser.parse_args()
    device = torch.device(options.device)
    sizes: dict[str, Any] = {_BATCH[options.kind]: options.batch}
    size = dataclasses.replace(SIZES[options.size], **sizes)
    with tempfile.TemporaryDirectory() as folder:
        name = options.variant or ("CUDA graphs" if device.type == "cuda" else "eager")
        variant = Variant(name, device)
        case = _BUILD[options.kind](Bench(size, device, Path(folder), variant))
    for _ in range(options.warm_up):
        case.run()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    count = max(options.updates // _BLOCKS, 1)
    seconds = []
    for _ in range(_BLOCKS):
        start = time.perf_counter()
        for _ in range(count):
            case.run()
        if gpu:
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - start) / count)
    median = statistics.median(seconds)
    flops = sum(product.flops for product in case.products)
    peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f}" if gpu else "-"
    print("| update | batch | updates | ms | fastest, slowest | a second | TFLOP/s | 10,000 [s] | peak GiB |")
    print("|---|--:|--:|--:|---|--:|--:|--:|--:|")
    print(
        f"| {options.kind}, {options.size}, {name} | {options.batch} | {count * _BLOCKS} | "
        f"{1e3 * median:.2f} | {1e3 * min(seconds):.2f}, {1e3 * max(seconds):.2f} | {1 / median:.1f} | "
        f"{flops / median / 1e12:.2f} | {10_000 * median:.0f} | {peak} |"
    )


if __name__ == "__main__":
    main()
