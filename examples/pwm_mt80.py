"""PWM on the MT30 and MT80 tasks: data, world model, a policy per task, evaluation and report.

    python examples/pwm_mt80.py                                  # eight tasks, from the model of the package
    python examples/pwm_mt80.py task=walker-stand seeds=3
    python examples/pwm_mt80.py preset=from_scratch task=mw-reach
    python examples/pwm_mt80.py data=published data.root=/data/mt80 model=48M task=walker-run
    python examples/pwm_mt80.py checkpoint=mt80-48M.pt data=published data.root=/data/mt80 task=mt80 compare=published
    python examples/pwm_mt80.py resume=runs/2026-11-21_walker-run

The options are in torchrl_pwm/runs/conf/pwm_mt80.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import sys

from torchrl_pwm.runs.cli import main

if __name__ == "__main__":
    main(["mt80", *sys.argv[1:]])
