"""Time of an iteration of SHAC or of online PWM on the Newton ant, and its memory.

python -m benchmarks.gpu.simulators shac --envs 4096 --folder build/shac
python -m benchmarks.gpu.simulators pwm --envs 4 --device cpu --folder /tmp/pwm
"""

from __future__ import annotations

import argparse
import csv
import itertools
import shutil
import statistics
import sys
from pathlib import Path

import torch

from benchmarks.learning.jobs import run_script

_SCRIPTS = {"shac": "examples/shac_simulator.py", "pwm": "examples/pwm_simulator.py"}
_WARM_UP = 3  # the first load kernels and capture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("method", choices=sorted(_SCRIPTS))
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--env", default="newton/ant")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    run = options.folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    settings = [f"env={options.env}", f"env.num_envs={options.envs}", f"iterations={options.iterations}"]
    settings += [f"device={options.device}", f"folder={run}", "progress=false", "log_interval=1"]
    settings += ["eval_interval=1000000", "save_interval=1000000", "evaluation.episodes=2", "eval_episodes=2"]
    if options.method == "pwm":
        settings += ["warmup_updates=8", f"collector.random_steps={32 * options.envs}"]
    try:
        run_script(_SCRIPTS[options.method], settings)
    except SystemExit as ended:
        if ended.code:
            sys.exit(ended.code)
    with open(run / "scalars" / "training_seconds.csv", newline="") as file:
        seconds = [float(row[-1]) for row in csv.reader(file)]
    times = [after - before for before, after in itertools.pairwise(seconds)][_WARM_UP:]
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if torch.cuda.is_available() else "-"
    print("| method | envs | iterations | seconds an iteration | fastest, slowest | peak GiB |")
    print("|---|--:|--:|--:|---|--:|")
    print(
        f"| {options.method}, {options.env} | {options.envs} | {len(times)} | {statistics.median(times):.3f} | "
        f"{min(times):.3f}, {max(times):.3f} | {peak} |"
    )


if __name__ == "__main__":
    main()
