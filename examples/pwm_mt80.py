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
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from torchrl_pwm.evaluation import format_table, read_summary
from torchrl_pwm.runs.cli import run_command
from torchrl_pwm.runs.pwm_offline import run_pipeline


def with_preset(arguments: list[str]) -> list[str]:
    """The command line with the preset that its data or model call for, where it names none."""
    if any(argument.startswith("preset=") for argument in arguments):
        return arguments
    given = {argument for argument in arguments if argument.startswith(("data=", "checkpoint="))}
    if given & {"data=collect", "data=open"}:
        return [*arguments, "preset=from_scratch"]
    return [*arguments, "preset=published"] if given - {"data=quickstart", "checkpoint=quickstart"} else arguments


def run(config: DictConfig) -> Path:
    """Runs what the configuration asks for, prints the scores, and returns the run's folder."""
    choices = HydraConfig.get()
    with open_dict(config):
        config.preset = choices.runtime.choices["preset"]
    config, folder, summary = run_command(run_pipeline, config)
    print(format_table(read_summary(summary), task_set=config.task_set), end="\n\n")
    print(f"To look at in a browser: {folder / 'report.html'}", summary, sep="\n")
    return folder


@hydra.main(version_base="1.3", config_path="pkg://torchrl_pwm.runs.conf", config_name="pwm_mt80")
def main(config: DictConfig) -> None:
    run(config)


if __name__ == "__main__":
    sys.argv = with_preset(sys.argv)
    main()
