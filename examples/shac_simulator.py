"""SHAC through a differentiable simulator: training, evaluation beside random actions, learning curve.

    python examples/shac_simulator.py                                    # cart-pole swing-up, in closed form
    python examples/shac_simulator.py env=analytic/double_pendulum
    python examples/shac_simulator.py env=dflex/ant                      # the published run, with DFlex installed
    python examples/shac_simulator.py value.num_nets=1 loss.delay_value=true loss.normalize_returns=false
    python examples/shac_simulator.py resume=runs/2026-11-21_cartpole_swingup

The options are in conf/shac_simulator.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig

import torchrl_pwm.trainers.configs  # noqa: F401, registers the configuration groups
from torchrl_pwm.trainers.folders import open_run
from torchrl_pwm.trainers.simulation import format_outcomes, run_simulation

# What a wrong option, file or package raises; each says what to do. HYDRA_FULL_ERROR=1 shows where it came from.
USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    ImportError,
    FloatingPointError,
    InstantiationException,
)


@hydra.main(version_base="1.3", config_path="conf", config_name="shac_simulator")
def main(config: DictConfig) -> None:
    try:
        config, folder = open_run(config, overrides=HydraConfig.get().overrides.task)
        summary = run_simulation(config, folder)
    except USER_ERRORS as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if isinstance(error, InstantiationException) and isinstance(error.__cause__, USER_ERRORS):
            error = error.__cause__  # Hydra's own message repeats it and adds the call.
        sys.exit(f"{type(error).__name__}: {error}\n(HYDRA_FULL_ERROR=1 shows where this was raised.)")
    print(format_outcomes(summary), summary, sep="\n")


if __name__ == "__main__":
    main()
