"""A run that is killed once it has a checkpoint, and resumed to its end.

python -m benchmarks.gpu.resumed build/resumed
python -m benchmarks.gpu.resumed /tmp/resumed --device cpu --iterations 6
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.learning import command, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--iterations", type=int, default=40)
    options = parser.parse_args()
    run = options.folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    settings = [f"device={options.device}", f"iterations={options.iterations}", "save_interval=1", "eval_interval=1000"]
    settings += ["env.num_envs=16", "evaluation.episodes=4", "eval_episodes=2"]
    manifest = run / "checkpoint" / "checkpoint.json"
    with subprocess.Popen(command("shac_simulator", run, settings)) as process:
        while process.poll() is None and not manifest.exists():
            time.sleep(0.05)
        process.kill()
    if (run / "summary.json").exists() or not manifest.exists():
        print("the run ended before it could be interrupted")
        return 1
    step = json.loads(manifest.read_text())["step"]
    done = subprocess.run(command("shac_simulator", run, settings), check=False)
    if done.returncode == 0:
        print("\n".join([*outcomes(run / "summary.json"), f"| killed after iteration {step} | | |"]))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
