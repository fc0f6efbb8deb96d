"""Kills at random moments of everything that writes, resumed, and compared with an undisturbed run bit for bit.

    python -m benchmarks.reliability                        # 300 kills in all, or what is left of them
    python -m benchmarks.reliability --kills 24 --only shac checkpoint
    python -m benchmarks.reliability --kills 0              # only writes benchmarks/results/kills.md and .json

What was done is in build/reliability, at first what the results hold; a further call goes on from there. A process is
forked from one that has everything imported, so that an attempt takes about a second. Exit code 1: a run was lost, or
came to other numbers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.reliability.kills import go_on_from, kill_all, records
from benchmarks.reliability.page import write

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="in all, shared out over the kinds")
    parser.add_argument("--minutes", type=float, default=None, help="begin no run later")
    parser.add_argument("--only", nargs="*", default=None, help="names of kinds")
    parser.add_argument("--most", type=int, default=8, help="kills of one run, after which it may end")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, default=Path("build/reliability"), help="of what was done")
    parser.add_argument("--on", type=Path, default=Path(tempfile.gettempdir()), help="the disk that runs live on")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of the page")
    options = parser.parse_args()
    folder = options.folder.resolve()
    go_on_from(folder, options.results / "kills.json")
    if options.kills:
        kill_all(
            folder,
            options.on,
            kills=options.kills,
            only=options.only,
            most=options.most,
            seed=options.seed,
            minutes=options.minutes,
        )
    done = records(folder)
    write(done, options.results)
    bad = [record for record in done if record["lost"] or record["different"]]
    for record in bad:
        print(f"{record['kind']}, run {record['run']}: {record['lost'] or record['different']}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
