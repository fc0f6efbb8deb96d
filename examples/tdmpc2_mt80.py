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

import hydra
from omegaconf import DictConfig

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from torchrl_pwm.evaluation import format_table, read_summary
from torchrl_pwm.runs.cli import run_command
from torchrl_pwm.runs.tdmpc2_offline import run_offline_tdmpc2


def with_evaluation(arguments: list[str]) -> list[str]:
    """The command line; where it names a checkpoint, with all its tasks and the published planner by default."""
    given = {argument.split("=")[0] for argument in arguments}
    further = ("task=${task_set}", "planner=tdmpc2") if "checkpoint" in given else ()
    return [*arguments, *(argument for argument in further if argument.split("=")[0] not in given)]


@hydra.main(version_base="1.3", config_path="pkg://torchrl_pwm.runs.conf", config_name="tdmpc2_mt80")
def main(config: DictConfig) -> None:
    config, _, summary = run_command(run_offline_tdmpc2, config)
    print(format_table(read_summary(summary), task_set=config.task_set), summary, sep="\n\n")


if __name__ == "__main__":
    sys.argv = with_evaluation(sys.argv)
    main()
