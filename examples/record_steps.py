"""Steps of a finished run's policy, with more noise from row to row, for a world model to learn from.

    python examples/record_steps.py run=runs/2026-11-21_ant out=steps
    python examples/pwm_simulator.py env=newton/ant pwm=newton/ant_recorded pretraining.data=steps

The run is one of shac_simulator.py, pwm_simulator.py or pwm_online.py. The options are in
torchrl_pwm/runs/conf/record_steps.yaml.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from torchrl_pwm.data import record_steps
from torchrl_pwm.runs.cli import user_errors
from torchrl_pwm.runs.load import load_policy


@hydra.main(version_base="1.3", config_path="pkg://torchrl_pwm.runs.conf", config_name="record_steps")
def main(config: DictConfig) -> None:
    with user_errors():
        out = Path(config.out)
        if out.exists():
            raise FileExistsError(f"{out} exists: choose another folder with out=...")
        policy, run = load_policy(Path(config.run))
        env = instantiate(run.env, num_envs=config.rows, seed=config.seed, **config.env)
        steps = record_steps(policy, env, config.steps, noise=config.noise, seed=config.seed, progress=True)
        steps.memmap(str(out))
        print(f"{steps.numel():,} steps, mean reward {float(steps['next', 'reward'].mean()):.3f}", out, sep="\n")


if __name__ == "__main__":
    main()
