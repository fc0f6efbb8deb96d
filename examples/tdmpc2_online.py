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

import sys

from torchrl_pwm.runs.cli import main

if __name__ == "__main__":
    main(["tdmpc2-online", *sys.argv[1:]])
