"""Everything that needs a GPU, in pieces of under nine minutes; a further call goes on where the last one stopped.

    make gpu                     # pieces for 25 minutes
    make gpu GPU_MINUTES=9       # as many as fit into nine minutes
    python -m benchmarks.gpu --only pwm-update

State and logs are in build/gpu, or in $GPU_FOLDER; the report goes to benchmarks/results/gpu_<card>.md.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import torch

from benchmarks.gpu.pieces import PIECES
from benchmarks.gpu.runner import run_pieces, write_report
from benchmarks.learning.jobs import commit
from benchmarks.machine import machine

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    """The exit code: 0 if all is done, 75 if pieces are left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("GPU_FOLDER", "build/gpu")))
    parser.add_argument("--minutes", type=float, default=25.0, help="begin no piece that would end later")
    parser.add_argument("--only", nargs="*", default=None, help="names of pieces")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"make gpu needs an NVIDIA GPU, and this PyTorch ({torch.__version__}) finds none.", file=sys.stderr)
        return 1
    pieces = [piece for piece in PIECES if options.only is None or piece.name in options.only]
    left = run_pieces(pieces, options.folder, minutes=options.minutes)
    card = re.sub(r"\W+", "_", torch.cuda.get_device_name().lower()).strip("_")
    page = RESULTS / f"gpu_{card}.md"
    write_report(
        PIECES, options.folder, page, machine="; ".join(machine(torch.device("cuda")).values()), commit=commit()
    )
    print(f"written: {page}")
    if left:
        print(f"{len(left)} pieces are left: {', '.join(piece.name for piece in left)}. Call it again to go on.")
    return 75 if left else 0


if __name__ == "__main__":
    sys.exit(main())
