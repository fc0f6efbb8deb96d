"""Makes the quickstart of the package: a world model of eight MT80 tasks, and start states for extraction.

    python examples/make_quickstart.py folder=runs/quickstart
    python examples/make_quickstart.py resume=runs/quickstart

Collects data (soft actor-critic for DMControl, noisy experts for Meta-World), trains one world model, improves it in
rounds with its policies' own episodes, extracts and evaluates a policy per task, and writes the package's
assets/quickstart.safetensors. The options are in
torchrl_pwm/runs/conf/preset/make_quickstart.yaml; two CPU cores take about two hours.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig
from pwm_mt80 import run

from torchrl_pwm.modules import QUICKSTART_FILE
from torchrl_pwm.runs.quickstart import export_quickstart


@hydra.main(version_base="1.3", config_path="pkg://torchrl_pwm.runs.conf", config_name="make_quickstart")
def main(config: DictConfig) -> None:
    folder = run(config)
    print(export_quickstart(folder, QUICKSTART_FILE))


if __name__ == "__main__":
    main()
