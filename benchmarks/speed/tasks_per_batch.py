"""Time and memory of a PWM update for T tasks in one program, for each task, beside T single updates.

    python -m benchmarks.speed.tasks_per_batch                                    # the quickstart's size, one thread
    python -m benchmarks.speed.tasks_per_batch --size 5M --batch 128 --rounds 2   # published networks
    python -m benchmarks.speed.tasks_per_batch --plot                             # of all that was measured

T updates one by one and one of all T take turns, on the same start states and noise. On a CPU times are of the
processor, not of the clock, so that other work on the machine counts less. Memory is what an update needs at most above
what is there before it, in a process of its own. Rows go to ``benchmarks/results/tasks_per_batch.csv``.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from benchmarks.machine import machine
from torchrl_pwm import MT80, PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble
from torchrl_pwm.modules import load_quickstart
from torchrl_pwm.trainers import PWMOptimizationStepper, StackedPWMUpdate

RESULTS = Path(__file__).parents[1] / "results"
FIELDS = ("size", "batch", "device", "machine", "date", "tasks", "single_ms", "together_ms", "single_mb", "together_mb")
SMALL: dict[str, Any] = {
    "batch": 128,
    "units": {"actor": (128, 128), "value": (128, 128)},
    "loss": {"horizon": 8, "behavior_coef": 10.0, "mask_actions": True},
    "stepper": {"critic_iterations": 1},
}
PUBLISHED: dict[str, Any] = {
    "batch": 512,
    "units": {"actor": (400, 200, 100), "value": (400, 200)},
    "loss": {"horizon": 16},
    "stepper": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="quickstart", choices=["quickstart", "5M", "19M", "48M", "317M"])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    for name, default in (("batch", None), ("rounds", 5), ("threads", 1), ("memory-of", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--single", action="store_true", help="memory of single updates")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.plot:
        plot(RESULTS / "tasks_per_batch.csv", RESULTS / "tasks_per_batch.png")
    elif options.memory_of:
        Case(argparse.Namespace(**{**vars(options), "batch": 8}), 1).one_by_one()  # libraries set themselves up
        print(memory(Case(options, options.memory_of), single=options.single))
    else:
        measure(options)


class Case:
    """Updates of T tasks."""

    def __init__(self, options: argparse.Namespace, tasks: int) -> None:
        settings = SMALL if options.size == "quickstart" else PUBLISHED
        self.device, self.batch = torch.device(options.device), options.batch or settings["batch"]
        torch.manual_seed(0)
        if options.size == "quickstart":
            model = load_quickstart().world_model
        else:
            sizes = {"observation_dim": MT80.observation_dim, "action_dim": MT80.action_dim, "num_tasks": len(MT80)}
            model = PWMWorldModel.from_preset(options.size, **sizes)
        model = model.to(self.device).requires_grad_(False)
        self.steppers = []
        for _ in range(tasks):
            actor = make_pwm_actor(model.latent_dim, model.action_dim, units=settings["units"]["actor"])
            critics = make_value_ensemble(model.latent_dim, units=settings["units"]["value"])
            loss = PWMLoss(actor, critics, model, **settings["loss"]).to(self.device)
            self.steppers.append(PWMOptimizationStepper(loss, **settings["stepper"]))
        shape = (tasks, self.batch)
        entries = {
            "observation": torch.randn(*shape, MT80.observation_dim, device=self.device),
            "action": torch.rand(*shape, MT80.action_dim, device=self.device) * 2 - 1,
            "task": torch.arange(tasks, device=self.device).unsqueeze(1).expand(shape).contiguous(),
        }
        self.starts = TensorDict(entries, shape)
        self.noise = torch.randn(loss.horizon, *shape, MT80.action_dim, device=self.device)

    def one_by_one(self) -> None:
        """An update of each task."""
        for task, stepper in enumerate(self.steppers):
            stepper.update(self.starts[task], self.noise[:, task])

    def stacked(self) -> Callable[[], object]:
        """What makes an update of all tasks; afterwards single updates are of other weights than these."""
        update = StackedPWMUpdate(self.steppers)
        return lambda: (update.update(self.starts, self.noise), update.failures())

    def timed(self, function: Callable[[], object]) -> float:
        """Milliseconds, of the processor on a CPU."""
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        start = clock()
        function()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (clock() - start)


def measure(options: argparse.Namespace) -> None:
    """Adds a row for each T to the file of results."""
    content = []
    for tasks in options.tasks:
        alone, together = Case(options, tasks), Case(options, tasks)
        update = together.stacked()
        alone.one_by_one(), update()
        times: list[list[float]] = [[], []]
        for _ in range(options.rounds):
            times[0].append(alone.timed(alone.one_by_one) / tasks)
            times[1].append(together.timed(update) / tasks)
        where, what = machine(alone.device), {"size": options.size, "batch": alone.batch, "device": options.device}
        # Single updates need their memory one after the other.
        megabytes = [measured_memory(options, tasks, True), measured_memory(options, tasks, False) / tasks]
        row = [*what.values(), where.get("accelerator", where["processor"]), datetime.date.today().isoformat(), tasks]
        row += [round(statistics.median(found), 3) for found in times] + [round(value, 2) for value in megabytes]
        content.append(row)
        print(dict(zip(FIELDS, row)), flush=True)
    write(RESULTS / "tasks_per_batch.csv", content)


def measured_memory(options: argparse.Namespace, tasks: int, single: bool) -> float:
    """Megabytes of an update of T tasks, or of T single ones in turn, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.tasks_per_batch", "--memory-of", str(tasks)]
    command += ["--size", options.size, "--device", options.device, "--threads", str(options.threads)]
    command += [*(["--batch", str(options.batch)] if options.batch else []), *(["--single"] if single else [])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def memory(case: Case, *, single: bool) -> float:
    """Megabytes at most above those before an update: of the GPU, or of the process."""
    update = case.one_by_one if single else case.stacked()
    if case.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        update()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    update()
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def write(file: Path, content: Sequence[Sequence[Any]]) -> None:
    """Adds rows, in place of older ones of the same size, batch, device and T."""
    keys = {tuple(map(str, (*row[:3], row[5]))) for row in content}
    kept = [row for row in read(file) if (row["size"], row["batch"], row["device"], row["tasks"]) not in keys]
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([FIELDS, *([row[field] for field in FIELDS] for row in kept), *content])


def read(file: Path) -> list[dict[str, str]]:
    """All rows."""
    with open(file) if file.exists() else open("/dev/null") as stream:
        return list(csv.DictReader(stream))


def plot(file: Path, picture: Path) -> None:
    """Time and memory for each task against T."""
    import matplotlib.pyplot as plt

    content = read(file)
    cases = list(dict.fromkeys((row["size"], row["batch"], row["device"]) for row in content))
    figure, axes = plt.subplots(len(cases), 2, figsize=(9, 3 * len(cases)), squeeze=False)
    for (size, batch, device), pair in zip(cases, axes):
        chosen = [row for row in content if (row["size"], row["batch"], row["device"]) == (size, batch, device)]
        chosen.sort(key=lambda row: int(row["tasks"]))
        for axis, unit, what in zip(pair, ("ms", "mb"), ("ms an update and task", "MB of a program and task")):
            for kind, label in (("single", "one by one"), ("together", "in one program")):
                numbers = [float(row[f"{kind}_{unit}"]) for row in chosen]
                axis.plot([int(row["tasks"]) for row in chosen], numbers, "o-", label=label)
            axis.set(xlabel="tasks T", ylabel=what, title=f"{size}, batch {batch}, {device}", xscale="log")
            axis.set_ylim(0, None)
            axis.set_xticks([int(row["tasks"]) for row in chosen], [row["tasks"] for row in chosen])
            axis.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
