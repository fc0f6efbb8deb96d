"""PWM in a simulator from its own steps: world model, policy, evaluation beside random actions, learning curve.

    python examples/pwm_simulator.py                                     # cart-pole swing-up, analytic
    python examples/pwm_simulator.py env=analytic/double_pendulum
    python examples/pwm_simulator.py env=newton/ant
    python examples/pwm_simulator.py pretraining.data=steps pretraining.updates=50000
    python examples/pwm_simulator.py env=dflex/ant checkpoint=ant.pt stage=evaluation   # a published agent
    python examples/pwm_simulator.py resume=runs/2026-11-21_cartpole_swingup

The simulator's gradients are not used: the policy learns inside the world model. The options are in
conf/pwm_simulator.yaml and torchrl_pwm/runs/conf/online.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import sys

from torchrl_pwm.runs.cli import main

if __name__ == "__main__":
    main(["simulator", *sys.argv[1:]])
