"""PWM on any TorchRL env from its own steps; by default a Gymnasium task.

    python examples/pwm_online.py                                        # Pendulum-v1
    python examples/pwm_online.py env.task=MountainCarContinuous-v0 iterations=3000
    python examples/pwm_online.py collector.workers=2
    python examples/pwm_online.py env._target_=my_package.make_my_env env.task=my-task
    python examples/pwm_online.py resume=runs/2026-11-21_Pendulum-v1

``make_my_env(task, num_envs, seed=, device=)`` returns an env of batch [num_envs] with one ``observation`` and actions
in [-1, 1]. The options are in torchrl_pwm/runs/conf/pwm_online.yaml and online.yaml. The last line printed is the path
of summary.json.
"""

from __future__ import annotations

import sys

from torchrl_pwm.runs.cli import main

if __name__ == "__main__":
    main(["online", *sys.argv[1:]])
