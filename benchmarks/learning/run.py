"""Runs and report of a group of the suite, by key=value.

    python benchmarks/learning/run.py methods=pwm,tdmpc2,shac,bc tasks=mini seeds=3

Options: tasks (a group of the suite), methods (default: all of the group; others are left out), seeds (their number),
data (of an offline group; default: runs/mini/data), workers.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from benchmarks.learning import suite  # noqa: E402
from benchmarks.learning.groups import groups  # noqa: E402

_DEFAULTS = {"tasks": "mini", "methods": "", "seeds": "3", "data": "runs/mini/data", "workers": "1"}


def main(arguments: list[str] | None = None) -> None:
    given = dict(argument.partition("=")[::2] for argument in (sys.argv[1:] if arguments is None else arguments))
    if unknown := [f"{key}={value}" for key, value in given.items() if key not in _DEFAULTS]:
        expected = " ".join(f"{key}={value}" for key, value in _DEFAULTS.items())
        sys.exit(f"expected options such as {expected}, found {' '.join(unknown)}")
    options, known = _DEFAULTS | given, groups()
    if options["tasks"] not in known:
        sys.exit(f"expected tasks= one of {', '.join(known)}, found {options['tasks']}")
    group = known[options["tasks"]]
    wanted = (
        options["methods"].replace("bc", "cloning_half,cloning_all").split(",") if options["methods"] else group.methods
    )
    methods = [method for method in wanted if method in group.methods]
    if not methods:
        sys.exit(f"the group {group.name} has none of {options['methods']}: {', '.join(group.methods)}")
    for method in set(wanted) - set(methods):
        print(f"{method} is left out: the group {group.name} has {', '.join(group.methods)}")
    common = ["--group", group.name, "--methods", *methods, "--data", options["data"]]
    seeds = [str(seed) for seed in range(int(options["seeds"]))]
    suite.main(["run", *common, "--workers", options["workers"], "--seeds", *seeds])
    suite.main(["report", *common])


if __name__ == "__main__":
    main()
