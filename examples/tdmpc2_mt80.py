"""TD-MPC2 on the MT30 and MT80 tasks: training on offline data, and evaluation of a checkpoint.

    python examples/tdmpc2_mt80.py                                   # collects data of two tasks, trains, evaluates
    python examples/tdmpc2_mt80.py data=published data.root=/data/mt80 model=48M task=mt80 training.iterations=10000000
    python examples/tdmpc2_mt80.py checkpoint=mt80-48M.pt task_set=mt80 compare=published   # every task
    python examples/tdmpc2_mt80.py checkpoint=mt80-48M.pt task=walker-run plan=false    # the policy prior alone
    python examples/tdmpc2_mt80.py resume=runs/2026-11-21_mt80

The options are in torchrl_pwm/runs/conf/tdmpc2_mt80.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import sys

from torchrl_pwm.runs.cli import main

if __name__ == "__main__":
    main(["tdmpc2-mt80", *sys.argv[1:]])
