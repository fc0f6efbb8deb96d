"""Import of optional packages, with an error that names the extra to install."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: dotted name of the module.
        extra: extra of this package that installs it.
        purpose: what needs it, for the message.

    Raises:
        ImportError: if it cannot be imported, naming the ``pip install`` line that helps.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs {module}, which cannot be imported ({error}); {how_to_install(extra)}"
        ) from error


def how_to_install(extra: str, python: tuple[int, int] = sys.version_info[:2]) -> str:
    """The line that installs an extra, or why there is none for this version of Python.

    Args:
        extra: of this package.
        python: version of Python.
    """
    if extra == "mt80" and python >= (3, 13):
        return (
            f"the extra mt80 cannot be had on Python {python[0]}.{python[1]}: labmaze, which dm_control 1.0.28 needs, "
            "was never built for it, and results of other versions of the three cannot be compared; take Python 3.10 "
            "to 3.12"
        )
    return f'pip install "torchrl-pwm[{extra}]"'
