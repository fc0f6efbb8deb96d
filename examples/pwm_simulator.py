"""PWM in a simulator from its own steps: world model, policy, evaluation beside random actions, learning curve.

    python examples/pwm_simulator.py                                     # cart-pole swing-up, in closed form
    python examples/pwm_simulator.py env=analytic/double_pendulum
    python examples/pwm_simulator.py env=newton/ant
    python examples/pwm_simulator.py pretraining.data=steps pretraining.updates=50000
    python examples/pwm_simulator.py resume=runs/2026-11-21_cartpole_swingup

The simulator's gradients are not used: the policy learns inside the world model. The options are in
conf/pwm_simulator.yaml and torchrl_pwm/runs/conf/online.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from torchrl_pwm.runs.cli import run_command
from torchrl_pwm.runs.evaluator import format_outcomes
from torchrl_pwm.runs.pwm_online import run_online


@hydra.main(version_base="1.3", config_path="pkg://torchrl_pwm.runs.conf", config_name="pwm_simulator")
def main(config: DictConfig) -> None:
    _, _, summary = run_command(run_online, config)
    print(format_outcomes(summary), summary, sep="\n")


if __name__ == "__main__":
    main()
