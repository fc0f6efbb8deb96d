"""A run of the command line that is stopped when its minutes are over, and goes on at the next call.

    python -m benchmarks.gpu.learning shac_simulator build/ant --minutes 8 env=newton/ant device=cuda

It ends with exit code 75 while there is more to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.pieces import GOES_ON

EXAMPLES = Path(__file__).parents[2] / "examples"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("script", help="of examples/, without its ending")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args()
    run = options.folder / "run"
    try:
        code = subprocess.run(command(options.script, run, options.settings), timeout=60 * options.minutes).returncode
    except subprocess.TimeoutExpired:
        return GOES_ON
    if code == 0:
        print("\n".join(outcomes(run / "summary.json")))
    return code


def command(script: str, run: Path, settings: list[str]) -> list[str]:
    """Begins the run, or resumes it."""
    started = (run / "config.yaml").exists()
    place = [f"resume={run}"] if started else [f"folder={run}", *settings]
    return [sys.executable, str(EXAMPLES / f"{script}.py"), *place, "progress=false"]


def outcomes(summary: Path) -> list[str]:
    """The returns of a summary and the pace of the training, as a table."""
    content = json.loads(summary.read_text())
    lines = ["| outcome | return, mean | standard deviation |", "|---|--:|--:|"]
    lines += [
        f"| {name} | {outcome['return_mean']:.1f} | {outcome['return_std']:.1f} |"
        for name, outcome in content["outcomes"].items()
    ]
    pace = f"{content['iterations']} iterations, {content['steps']} steps, {content['seconds']:.0f} s"
    return [*lines, f"| {pace} | | |"]


if __name__ == "__main__":
    sys.exit(main())
