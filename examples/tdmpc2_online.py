"""TD-MPC2 on any TorchRL env from its own steps; by default a DMControl task.

    python examples/tdmpc2_online.py                                     # cartpole-swingup
    python examples/tdmpc2_online.py env.task=reacher-easy
    python examples/tdmpc2_online.py collector.plan=false                # act by the policy prior while training
    python examples/tdmpc2_online.py env=gym/pendulum
    python examples/tdmpc2_online.py env=analytic/cartpole_swingup
    python examples/tdmpc2_online.py resume=runs/2026-11-21_cartpole-swingup

The options are in torchrl_pwm/runs/conf/tdmpc2_online.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from torchrl_pwm.runs.cli import run_command
from torchrl_pwm.runs.evaluator import format_outcomes
from torchrl_pwm.runs.tdmpc2_online import run_online_tdmpc2


@hydra.main(version_base="1.3", config_path="pkg://torchrl_pwm.runs.conf", config_name="tdmpc2_online")
def main(config: DictConfig) -> None:
    _, _, summary = run_command(run_online_tdmpc2, config)
    print(format_outcomes(summary), summary, sep="\n")


if __name__ == "__main__":
    main()
