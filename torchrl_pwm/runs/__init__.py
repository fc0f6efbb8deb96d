"""The application: configurations, run folders, data preparation, training runs, evaluation and reports."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """The console command ``torchrl-pwm``, see :mod:`torchrl_pwm.runs.cli`."""
    if importlib.util.find_spec("hydra") is None:
        sys.exit('torchrl-pwm needs Hydra, which is not installed; pip install "torchrl-pwm[runs]"')
    from torchrl_pwm.runs.cli import main

    sys.path.insert(0, "")  # an env or a task of one's own lies in the current folder
    main()
