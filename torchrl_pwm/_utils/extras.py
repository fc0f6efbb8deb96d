"""Import of optional packages, with an error that names the extra to install."""

from __future__ import annotations

import importlib
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
            f'{purpose} needs {module}, which cannot be imported ({error}); pip install "torchrl-pwm[{extra}]"'
        ) from error
