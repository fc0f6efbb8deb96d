"""The application: configurations, run folders, data preparation, training runs, evaluation and reports."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from torchrl_pwm._utils.extras import require

if TYPE_CHECKING:
    from torchrl_pwm.runs.load import load_policy as load_policy


def main() -> None:
    """The console command ``torchrl-pwm``, see :mod:`torchrl_pwm.runs.cli`."""
    if importlib.util.find_spec("hydra") is None:
        sys.exit('torchrl-pwm needs Hydra, which is not installed; pip install "torchrl-pwm[runs]"')
    try:
        from torchrl_pwm.runs.cli import main
    except KeyboardInterrupt:  # which a run catches by itself
        sys.exit(130)

    sys.path.insert(0, "")  # an env or a task of one's own lies in the current folder
    main()


def __getattr__(name: str) -> Any:
    """:func:`~torchrl_pwm.runs.load.load_policy`, on first use."""
    if name != "load_policy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("hydra", extra="hydra", purpose="load_policy, which reads a run's configuration,")
    from torchrl_pwm.runs.load import load_policy

    return load_policy
