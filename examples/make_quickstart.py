"""Makes the quickstart of the package: a world model of eight MT80 tasks, and start states for extraction.

    python examples/make_quickstart.py folder=runs/quickstart
    python examples/make_quickstart.py resume=runs/quickstart

Collects data (soft actor-critic for DMControl, noisy experts for Meta-World), trains one world model, improves it in
rounds with its policies' own episodes, extracts and evaluates a policy per task, and writes
quickstart.safetensors in the run's folder, or where out= says: out=torchrl_pwm/assets/quickstart.safetensors for the
package's own. The options are in
torchrl_pwm/runs/conf/preset/make_quickstart.yaml; two CPU cores take about two hours.
"""

from __future__ import annotations

import sys

from torchrl_pwm.runs.cli import main

if __name__ == "__main__":
    main(["make-quickstart", *sys.argv[1:]])
