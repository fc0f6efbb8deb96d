"""PWM on the MT30 and MT80 tasks: data, world model, a policy per task, evaluation and report.

    python examples/pwm_mt80.py                                  # from scratch, about ten minutes on two cores
    python examples/pwm_mt80.py task=mw-reach seeds=3
    python examples/pwm_mt80.py data=published data.root=/data/mt80 model=48M task=walker-run
    python examples/pwm_mt80.py checkpoint=mt80-48M.pt data=published data.root=/data/mt80 task=mt80
    python examples/pwm_mt80.py resume=runs/2026-11-21_walker-run

The options are in conf/pwm_mt80.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import logging
import sys

import hydra
from omegaconf import DictConfig

import torchrl_pwm.trainers.configs  # noqa: F401, registers the configuration groups
from torchrl_pwm.trainers.folders import open_run
from torchrl_pwm.trainers.pipeline import run_pipeline


@hydra.main(version_base="1.3", config_path="conf", config_name="pwm_mt80")
def main(config: DictConfig) -> None:
    config, folder = open_run(config, overrides=hydra.core.hydra_config.HydraConfig.get().overrides.task)
    print(f"run folder: {folder}")
    print(run_pipeline(config, folder))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    published = any(argument.startswith(("data=published", "checkpoint=")) for argument in sys.argv)
    if published and not any(argument.startswith("preset=") for argument in sys.argv):
        sys.argv.append("preset=published")
    main()
