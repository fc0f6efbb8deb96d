"""Methods x tasks x seeds, in one harness: PWM, TD-MPC2, SHAC, SAC, PPO, behaviour cloning and random actions.

    python -m benchmarks.learning.suite run --group mini --data runs/quickstart/data --seeds 0 1 2 --workers 2
    python -m benchmarks.learning.suite run --group closed_form --methods pwm shac sac ppo tdmpc2 random
    python -m benchmarks.learning.suite run --group mini --data ... -- evaluation.episodes=20 tdmpc2:stepper.lr=3e-4
    python -m benchmarks.learning.suite report --group mini         # benchmarks/results/suite_mini.*

Each run is one of ``examples/`` or of this folder, on one thread; it lives in runs/suite/<group>/<method>/. What is
done is skipped and what was interrupted goes on from its checkpoint. Settings after ``--`` go to every method, or with
``method:`` before them to one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.learning.decisions import measure_decisions
from benchmarks.learning.figures import draw
from benchmarks.learning.groups import METHODS, Group, Plan, groups
from benchmarks.learning.jobs import ROOT, Job, run_jobs
from benchmarks.learning.methods.offline import offline_jobs
from benchmarks.learning.methods.online import online_jobs
from benchmarks.learning.page import markdown, write_page
from benchmarks.learning.readers import read_records
from benchmarks.learning.results import summarize, write_csv, write_json
from torchrl_pwm._utils.files import replace_file

RUNS = ROOT / "runs" / "suite"
RESULTS = ROOT / "benchmarks" / "results"


def make_jobs(plan: Plan) -> list[Job]:
    """The runs of a plan."""
    return offline_jobs(plan) if plan.group.offline else online_jobs(plan)


def report(plan: Plan, results: Path, *, minutes: float | None = None) -> Path:
    """Writes CSV, JSON, figures, table and page of the finished runs; returns the path of the page.

    The milliseconds of a decision are kept beside the runs, and measured anew when further runs are finished.

    Raises:
        FileNotFoundError: if no run is finished.
    """
    group = plan.group
    records = read_records(group, plan.folder, plan.methods, plan.tasks)
    measured = plan.folder / "decisions.json"
    latest = max(file.stat().st_mtime for file in plan.folder.rglob("summary.json"))
    if not measured.exists() or measured.stat().st_mtime < latest:
        replace_file(measured, json.dumps(measure_decisions(group, plan.folder), indent=2).encode())
    content = summarize(group, records, json.loads(measured.read_text()), minutes=minutes)
    results.mkdir(parents=True, exist_ok=True)
    write_csv(content["rows"], results / f"suite_{group.name}.csv")
    write_json(content, results / f"suite_{group.name}.json")
    pictures = draw(group, records, content, results)
    table = markdown(group, content)
    (results / f"suite_{group.name}.md").write_text(table, encoding="utf-8")
    print(table)
    page = results / f"suite_{group.name}.html"
    write_page(group, content, pictures, page)
    return page


def make_plan(options: argparse.Namespace, group: Group) -> Plan:
    """What the command line asks for.

    Raises:
        ValueError: if the group has no such method.
    """
    methods = tuple(options.methods or group.methods)
    if unknown := [method for method in methods if method not in group.methods]:
        raise ValueError(f"the group {group.name} has {', '.join(group.methods)}, not {', '.join(unknown)}")
    tasks = tuple(options.tasks or group.tasks)
    if not group.offline and (unknown := [task for task in tasks if task not in group.tasks]):
        raise ValueError(f"the group {group.name} has {', '.join(group.tasks)}, not {', '.join(unknown)}")
    return Plan(
        group=group,
        methods=methods,
        tasks=tasks,
        seeds=tuple(options.seeds),
        folder=options.folder or RUNS / group.name,
        data=options.data,
        updates=options.updates,
        batch_size=options.batch_size,
        slice_len=options.slice_len,
        episodes=options.episodes,
        overrides=tuple(options.overrides),
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line."""
    known = groups()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning.suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--group", choices=list(known), required=True)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="default: all of the group")
    parser.add_argument("--tasks", nargs="+", help="default: all of the group")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--folder", type=Path, help="of the runs; default: runs/suite/<group>")
    parser.add_argument("--episodes", type=int, help="of the final evaluation in each task")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of the report")
    parser.add_argument("--minutes", type=float, help="where curves are compared at equal time; default: the shortest")
    offline = parser.add_argument_group("offline groups")
    offline.add_argument("--data", type=Path, help="folder of the episodes that all methods learn from")
    offline.add_argument("--updates", type=int, default=6000, help="of each world model")
    offline.add_argument("--batch-size", type=int, default=128, help="sequences of an update")
    offline.add_argument("--slice-len", type=int, default=8, help="transitions of a sequence")
    mark = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:mark])
    options.overrides = arguments[mark + 1 :]
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        plan = make_plan(options, groups()[options.group])
        if options.what == "report":
            print(report(plan, options.results, minutes=options.minutes))
            return
        failures = run_jobs(make_jobs(plan), options.workers)
    except (ValueError, FileNotFoundError, ImportError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if failures:
        sys.exit(f"{len(failures)} runs are missing; the same command goes on with them.")


if __name__ == "__main__":
    main()
