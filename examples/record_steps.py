"""Steps of a finished run's policy, with more noise from row to row, for a world model to learn from.

    python examples/record_steps.py run=runs/2026-11-21_ant out=steps
    python examples/pwm_simulator.py env=newton/ant pwm=newton/ant_recorded pretraining.data=steps

The run is one of shac_simulator.py, pwm_simulator.py or pwm_online.py. The options are in
torchrl_pwm/runs/conf/record_steps.yaml.
"""

from __future__ import annotations

import sys

from torchrl_pwm.runs.cli import main

if __name__ == "__main__":
    main(["record", *sys.argv[1:]])
