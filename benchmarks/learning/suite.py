"""Methods x tasks x seeds, in one harness: PWM, TD-MPC2, IQL, SHAC, SAC, PPO, behaviour cloning and random actions.

    python -m benchmarks.learning.suite run --group mini --data runs/mini/data --seeds 0 1 2 --workers 2
    python -m benchmarks.learning.suite run --group mini --data runs/mini/data --seeds 1 --methods tdmpc2  # a part
    python -m benchmarks.learning.suite run --group closed_form --methods pwm shac sac ppo tdmpc2 random
    python -m benchmarks.learning.suite run --group mini --data ... -- evaluation.episodes=20 tdmpc2:stepper.lr=3e-4
    python -m benchmarks.learning.suite run --group mini --data ... --engine submitit hours=8    # or ray: docs/gpu.md
    python -m benchmarks.learning.suite report --group mini         # benchmarks/results/suite_mini.*

Each run is a script of ``examples/`` or of ``methods/``, on one thread, below runs/suite/<group>/<method>/. Finished
runs are skipped and interrupted ones go on from their checkpoints. Settings after ``--`` go to every method, or with
``method:`` before them to one. The group closed_form is that of the analytic simulators.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.learning.decisions import measure_decisions
from benchmarks.learning.earlier import read_earlier
from benchmarks.learning.groups import METHODS, groups
from benchmarks.learning.jobs import RESULTS, ROOT, split_settings
from benchmarks.learning.plans import Plan
from benchmarks.learning.records import read_records
from benchmarks.learning.report import draw, markdown, write_page
from benchmarks.learning.results import summarize, write_csv
from benchmarks.learning.runner import add_engine, chosen_engine, complete
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm.runs.cli import user_errors

RUNS = ROOT / "runs" / "suite"
_OFFLINE = {
    "updates": "of a task's world model before its rounds",
    "tdmpc2_updates": "of TD-MPC2's, where they are others",
    "iql_updates": "of each of IQL's policies",
    "batch_size": "sequences of an update of a world model",
    "slice_len": "transitions of a sequence; TD-MPC2 has its published 3",
    "rounds": "in which PWM and TD-MPC2 play and train on",
    "round_updates": "of a task's world model in a round",
}


def report(plan: Plan, results: Path, *, minutes: float | None = None, add: bool = False) -> Path:
    """Writes CSV, JSON, figures, table and page of the finished runs; returns the path of the page.

    The milliseconds of a decision are kept beside the runs, and measured anew when further runs are finished.

    Args:
        plan: whose runs are reported.
        results: folder of the report.
        minutes: where curves are compared; default: at the end of the shortest.
        add: to the report that is in ``results``, which may be of runs on another machine.

    Raises:
        FileNotFoundError: if no run is finished.
        ValueError: if the group is not offline, whose scores are relative to the other runs, and ``add`` is given.
    """
    group, measured = plan.group, plan.folder / "decisions.json"
    if add and not group.offline:
        raise ValueError(
            f"--add is for offline groups, found {group.name}, whose scores are relative to its other runs"
        )
    place = results / f"suite_{group.name}"
    earlier = read_earlier(place.with_suffix(".json")) if add else None
    records = read_records(group, plan.folder, plan.methods, plan.tasks, earlier)
    latest = max(file.stat().st_mtime for file in plan.folder.rglob("summary.json"))
    if not measured.exists() or measured.stat().st_mtime < latest:
        replace_file(measured, json.dumps(measure_decisions(group, plan.folder), indent=2).encode())
    content = summarize(group, records, json.loads(measured.read_text()), minutes=minutes)
    results.mkdir(parents=True, exist_ok=True)
    write_csv(content["rows"], place.with_suffix(".csv"))
    place.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    place.with_suffix(".md").write_text(markdown(group, content), encoding="utf-8")
    write_page(group, content, draw(group, records, content, place), place.with_suffix(".html"))
    print(markdown(group, content))
    return place.with_suffix(".html")


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Plan]:
    """The options of a command line, and the plan that they make.

    Raises:
        ValueError: if the group has no such method or task.
    """
    known = groups()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--group", choices=list(known), required=True)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all of the group")
    parser.add_argument("--tasks", nargs="+", help="default: all of the group")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add_engine(parser)
    parser.add_argument("--folder", type=Path, help="of the runs; default: runs/suite/<group>")
    parser.add_argument("--episodes", type=int, help="of the final evaluation in each task")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of the report")
    parser.add_argument("--minutes", type=float, help="where curves are compared at equal time; default: the shortest")
    parser.add_argument("--add", action="store_true", help="to the report that is there, from runs on other machines")
    offline = parser.add_argument_group("offline groups")
    offline.add_argument("--data", type=Path, help="folder of the episodes that all methods learn from")
    for name, purpose in _OFFLINE.items():
        default = getattr(Plan, name)
        said = "as in PWM's preset" if default is None else default
        offline.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"{purpose}; default: {said}"
        )
    given, settings = split_settings(arguments)
    options = parser.parse_args(given)
    group = known[options.group]
    plan = Plan(
        group=group,
        methods=tuple(options.methods or group.methods),
        tasks=tuple(options.tasks or group.tasks),
        seeds=tuple(options.seeds),
        folder=options.folder or RUNS / group.name,
        overrides=settings,
        **{name: getattr(options, name) for name in ("data", "episodes", *_OFFLINE)},
    )
    group.check(plan.methods, plan.tasks)
    return options, plan


def main(arguments: list[str] | None = None) -> None:
    with user_errors():
        options, plan = parse(sys.argv[1:] if arguments is None else arguments)
        if options.action == "report":
            print(report(plan, options.results, minutes=options.minutes, add=options.add))
            return
        complete(plan.jobs(), chosen_engine(options), plan.folder)


if __name__ == "__main__":
    main()
