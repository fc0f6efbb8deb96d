"""Resident memory along 2,000 updates: of one policy, of policies trained together, and of a world model.

    python -m benchmarks.speed.memory

Each in a process of its own, on one thread of the CPU. The table goes to ``benchmarks/results/memory_cpu.md``.
"""

from __future__ import annotations

import datetime
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tensordict import TensorDict

from benchmarks.machine import machine
from torchrl_pwm import PWMLoss, PWMWorldModel, PWMWorldModelLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.trainers import PWMOptimizationStepper, StackedPWMUpdate, WorldModelOptimizationStepper

RESULTS = Path(__file__).parents[1] / "results" / "memory_cpu.md"
READ_AT = (200, 500, 1000, 1500, 2000)
OBSERVATION, ACTION, LATENT, BATCH = 24, 6, 128, 64


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(" | ".join(f"{megabytes:.1f}" for megabytes in memory(CASES[sys.argv[1]]())))
        return
    lines = ["| updates | " + " | ".join(f"{number:,}" for number in READ_AT) + " |", "|---" * (len(READ_AT) + 1) + "|"]
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.speed.memory", name]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        lines.append(f"| {name} | {found} |")
        print(lines[-1], flush=True)
    about = machine(torch.device("cpu"))
    RESULTS.write_text(
        "# Memory along 2,000 updates\n\n"
        f"`python -m benchmarks.speed.memory`, {datetime.date.today()}, {about['processor']}, {about['system']}, torch "
        f"{torch.__version__}, one thread,\neager. Megabytes resident, after a collection of garbage; latents of "
        f"{LATENT}, batches of {BATCH}, horizon 8, sequences of 8 steps.\n\n" + "\n".join(lines) + "\n"
    )


def memory(update: Callable[[], object]) -> list[float]:
    """Megabytes resident after each number of updates."""
    found = []
    for number in range(1, READ_AT[-1] + 1):
        update()
        if number in READ_AT:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found.append(pages * 4096 / 2**20)
    return found


def policy() -> Callable[[], object]:
    stepper, batch = policy_stepper(world_model()), starts()
    return lambda: stepper.update(batch)


def policies_together() -> Callable[[], object]:
    model = world_model()
    together, batch = StackedPWMUpdate([policy_stepper(model) for _ in range(4)]), torch.stack([starts()] * 4)
    return lambda: (together.update(batch), together.failures())


def model_update() -> Callable[[], object]:
    stepper = WorldModelOptimizationStepper(PWMWorldModelLoss(world_model()), iterations=READ_AT[-1])
    size = (BATCH, 8)
    step = TensorDict({"observation": torch.randn(*size, OBSERVATION), "reward": torch.randn(*size, 1)}, size)
    start = {"observation": torch.randn(*size, OBSERVATION), "action": torch.rand(*size, ACTION) * 2 - 1}
    batch = TensorDict({**start, "next": step}, size)
    return lambda: stepper.update(batch)


CASES = {"one policy": policy, "four policies together": policies_together, "world model": model_update}


def world_model() -> PWMWorldModel:
    return PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT, encoder_units=(128,), units=(128, 128), num_bins=101)


def policy_stepper(model: PWMWorldModel) -> PWMOptimizationStepper:
    actor, critics = make_pwm_actor(LATENT, ACTION, units=(128,)), make_value_ensemble(LATENT, units=(128,))
    loss = PWMLoss(actor, critics, model.requires_grad_(False), horizon=8)
    return PWMOptimizationStepper(loss, iterations=READ_AT[-1], critic_iterations=1)


def starts() -> TensorDict:
    return TensorDict({"observation": torch.randn(BATCH, OBSERVATION)}, [BATCH])


if __name__ == "__main__":
    main()
