"""Time of a SHAC window at the published cart-pole settings, with critics on the kernels for CPUs and without.

    python -m benchmarks.speed.shac_window                        # 1,024 envs, one thread
    python -m benchmarks.speed.shac_window --threads 2 --envs 128 --rounds 5

Both take turns in one process, on the same windows. Times are of the processor, not of the clock, so that other work on
the machine counts less.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch

from torchrl_pwm import ObservationNormalizer, SHACLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.trainers import SHACOptimizationStepper

VARIANTS = {
    "torch's functions": lambda: torch.backends.mkldnn.flags(enabled=False),
    "kernels": contextlib.nullcontext,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("envs", 1024), ("threads", 1), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts: dict[str, dict[str, list[float]]] = {
        name: {"simulator": [], "critic pass": [], "update": []} for name in VARIANTS
    }
    for _ in range(options.rounds):
        for name, context in VARIANTS.items():
            with context():
                measure(options.envs, parts[name])
    for name, times in parts.items():
        cells = [f"{part} {statistics.median(values):.2f} s" for part, values in times.items()]
        print(f"{name}: {', '.join(cells)}")


def measure(num_envs: int, times: dict[str, list[float]]) -> None:
    """Adds the times of one window, from the same start as all others."""
    torch.manual_seed(0)
    env = AnalyticEnv("cartpole_swingup", num_envs, requires_grad=True)
    size, key = env.observation_spec["observation"].shape[-1], "normalized_observation"
    actor, critics = make_pwm_actor(size, 1, in_key=key, min_log_std=-10.0), make_value_ensemble(size, in_key=key)
    loss = SHACLoss(actor, critics, normalizer=ObservationNormalizer(size))
    stepper = SHACOptimizationStepper(loss)
    critic_pass = stepper.update_critics
    stepper.update_critics = timed(times["critic pass"], critic_pass)  # type: ignore[method-assign]
    window, _ = timed(times["simulator"], loss.rollout)(env, env.reset())
    timed(times["update"], stepper.update)(window)


def timed(times: list[float], function: Callable) -> Callable:
    """The function, which notes how long each of its calls took the processor."""

    def run(*args: object) -> object:
        start = time.process_time()
        result = function(*args)
        times.append(time.process_time() - start)
        return result

    return run


if __name__ == "__main__":
    main()
