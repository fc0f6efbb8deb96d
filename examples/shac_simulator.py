"""SHAC through a differentiable simulator: training, evaluation beside random actions, learning curve.

    python examples/shac_simulator.py                                    # cart-pole swing-up, analytic
    python examples/shac_simulator.py env=analytic/double_pendulum
    python examples/shac_simulator.py env=dflex/ant                      # the published run, with DFlex installed
    python examples/shac_simulator.py value.num_nets=1 loss.delay_value=true loss.normalize_returns=false
    python examples/shac_simulator.py resume=runs/2026-11-21_cartpole_swingup

The options are in torchrl_pwm/runs/conf/shac_simulator.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import sys

from torchrl_pwm.runs.cli import main

if __name__ == "__main__":
    main(["shac", *sys.argv[1:]])
