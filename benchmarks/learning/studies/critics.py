"""What a policy earns inside its model, and whether the critics know it, along a plain extraction.

    python -m benchmarks.learning.studies.critics run MODEL --data runs/mini/data --tasks walker-stand mw-button-press
    python -m benchmarks.learning.studies.critics report              # benchmarks/results/critics.{md,png}

MODEL is the ``world_model.pt`` of a run of ``preset=mini``, trained no further: the optimiser is what differs.
The return is that of 150 steps of the mean action from 512 start states of the data, closed by the mean of the last 50
rewards for ever; the critics' value is that of the same start states. Both are in the units of the loss.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tensordict import TensorDictBase

from benchmarks.learning.jobs import study_parser
from benchmarks.learning.results import axes_of_tasks, markdown_table
from benchmarks.machine import processor
from torchrl_pwm._utils.devices import one_thread
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm.runs.cli import command_config, user_errors
from torchrl_pwm.runs.extraction import Extraction, ExtractionJob

UPDATES, EVERY, STEPS, TAIL = 500, 50, 150, 50
VARIANTS = {
    "recorded start states, one pass": (),
    "recorded start states, four passes": ("stepper.critic_iterations=4",),
    "recorded start states, one critic": ("stepper.critic_iterations=4", "value.num_nets=1"),
    "recorded start states, delayed critics": (
        *("stepper.critic_iterations=4", "loss.delay_value=true", "stepper.target_tau=0.05"),
    ),
    "rollouts go on, one pass": ("stepper.continued=0.75",),
    "rollouts go on, four passes": ("stepper.critic_iterations=4", "stepper.continued=0.75"),
}
_PAGE = """# The critics decide: return inside a fixed model, along an extraction

`python -m benchmarks.learning.studies.critics run MODEL --data DATA --tasks ...` and `report`, {made}; {machine}; one
thread, no GPU, seeds {seeds}. {updates} updates of `preset=grounded` on one world model of twelve tasks that is not
trained any more; what differs is the optimiser. Return: {steps} steps of the mean action inside the model, from 512
recorded states, discounted, closed by the mean of the last {tail} rewards for ever. Value: what the critics say of the
same states; correlation over them. All in the units of the loss, means of the seeds.

{table}

With recorded start states alone no rollout begins where rollouts end, and the critics close each with a value that
nothing holds: an error of its slope along the way of b a step makes one of b / (1 - gamma), a hundredfold, in every
value, while their loss stays small. `stepper.continued=0.75` lets three of four rollouts go on where they ended. What
is earned inside a model that errs more by the step is not earned outside: see [plain extraction](plain.md).

![return and value](critics.png)
"""


def measure(extraction: Extraction, states: TensorDictBase) -> dict[str, float]:
    """Return of the mean action from start states [B], the critics' values there, and their correlation."""
    loss, model = extraction.loss, extraction.model
    horizon, loss.horizon = loss.horizon, STEPS
    try:
        with torch.no_grad(), kept_generators():
            noise = torch.zeros(STEPS, len(states), model.action_dim)
            rollout = loss.imagine(states, noise=noise, heads=torch.arange(model.num_heads))
            reward = rollout["next", "reward"].squeeze(-1)
            discount = loss._gamma ** torch.arange(STEPS)
            closing = loss._gamma**STEPS / (1.0 - loss._gamma) * reward[:, -TAIL:].mean(1)
            earned = (discount * reward).sum(1) + closing
            with loss.value_network_params.to_module(loss.value_network):
                value = loss.value_network(rollout[:, 0].select("latent"))["state_value"].min(0).values.squeeze(-1)
    finally:
        loss.horizon = horizon
    both = torch.corrcoef(torch.stack([earned, value]))
    return {"return": earned.mean().item(), "value": value.mean().item(), "correlation": both[0, 1].item()}


def run(file: Path, model: Path, data: Path, task: str, variant: str, seed: int) -> None:
    """One extraction, measured along the way into ``file``."""
    line = ["preset=grounded", "data=open", f"data.root={data.absolute()}", f"task={task}", f"seed={seed}"]
    line += [f"checkpoint={model.absolute()}", "model.num_heads=2", f"extraction.iterations={UPDATES}"]
    line += ["extraction.stepper_of=null"]
    config = command_config("mt80", [*line, *VARIANTS[variant]])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    job = ExtractionJob(plain, task, seed, file.parent / file.stem, data, model, threads=1, device="cpu")
    extraction, rows = Extraction(job), []
    states = torch.cat([extraction.replay.sample() for _ in range(512 // config.extraction.batch_size)])
    metrics: dict[str, float] = {}
    for update in range(UPDATES + 1):
        if update % EVERY == 0:
            rows.append({"update": update, **measure(extraction, states), **metrics})
            print(f"{task}, {variant}, seed {seed}: {rows[-1]}", flush=True)
        found = extraction.stepper.update(extraction.replay.sample())
        metrics = {key: float(found[key]) for key in ("loss_value", "actor_grad_norm")}
    replace_file(file, json.dumps(rows, indent=1).encode())


def report(folder: Path, results: Path) -> None:
    """Writes page and picture of the finished extractions.

    Raises:
        FileNotFoundError: if there are none.
    """
    found: dict[tuple[str, str], dict[int, list[dict[str, float]]]] = {}
    for file in sorted(folder.glob("*/*/seed-*.json")):
        task, variant, seed = file.parts[-3], file.parts[-2].replace("_", " "), int(file.stem.split("-")[1])
        found.setdefault((task, variant), {})[seed] = json.loads(file.read_text())
    if not found:
        raise FileNotFoundError(f"no finished extraction in {folder}: python -m {__spec__.name} run MODEL --data ...")
    rows = []
    for task in dict.fromkeys(task for task, _ in found):
        for variant in (name for name in VARIANTS if (task, name) in found):
            runs = list(found[task, variant].values())
            best, last = _mean(runs, "return").max().item(), _mean(runs, "return")[-1].item()
            cells = [_mean(runs, key)[-1].item() for key in ("value", "correlation", "loss_value")]
            rows.append([task, variant, f"{best:.1f}", f"**{last:.1f}**", *(f"{cell:.2f}" for cell in cells)])
    head = ("task", "variant", "best return along the way", "at the end", "value", "correlation", "critics' loss")
    seeds = sorted({seed for runs in found.values() for seed in runs})
    page = _PAGE.format(
        made=datetime.date.today().isoformat(),
        machine=processor(),
        seeds=", ".join(map(str, seeds)),
        updates=UPDATES,
        steps=STEPS,
        tail=TAIL,
        table=markdown_table(head, rows),
    )
    (results / "critics.md").write_text(page, encoding="utf-8")
    draw(found, results / "critics.png")
    print(page)


def _mean(runs: Sequence[Sequence[dict[str, float]]], key: str) -> torch.Tensor:
    """A curve, mean of the runs; without what is measured from the first update on alone."""
    return torch.tensor([[row[key] for row in run if key in row] for run in runs]).mean(0)


def draw(found: dict[tuple[str, str], dict[int, list[dict[str, float]]]], file: Path) -> None:
    """Return, and dashed the critics' value, over the updates."""
    tasks = list(dict.fromkeys(task for task, _ in found))
    figure, places = axes_of_tasks([f"{task} (dashed: the critics' value)" for task in tasks], "updates")
    for axes, task in zip(places, tasks):
        for number, variant in enumerate(name for name in VARIANTS if (task, name) in found):
            runs = list(found[task, variant].values())
            updates = [row["update"] for row in runs[0]]
            axes.plot(updates, _mean(runs, "return"), color=f"C{number}", label=variant)
            axes.plot(updates, _mean(runs, "value"), color=f"C{number}", linestyle="--", alpha=0.6)
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = study_parser("critics", __doc__)
    parser.add_argument("model", type=Path, nargs="?", help="world_model.pt of a run of preset=mini")
    parser.add_argument("--data", type=Path, help="folder of the recorded episodes")
    parser.add_argument("--tasks", nargs="+", default=["walker-stand", "mw-button-press"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    options = parser.parse_args(arguments)
    with user_errors():
        if options.action == "report":
            report(options.folder, options.results)
            return
        if options.model is None or options.data is None:
            parser.error("run needs MODEL and --data")
        with one_thread():
            for seed in options.seeds:
                for task in options.tasks:
                    for variant in options.variants:
                        file = options.folder / task / variant.replace(" ", "_") / f"seed-{seed}.json"
                        if not file.exists():
                            run(file, options.model, options.data, task, variant, seed)


if __name__ == "__main__":
    main()
