"""Libraries that compile a part of themselves as they are imported."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_compiled"]


def import_compiled(module: str, *, library: str, install: str) -> Any:
    """Imports a module whose import compiles C++ or CUDA with ninja.

    Args:
        module: its name.
        library: the name of the library, for the error.
        install: the steps that make it work, likewise.

    Raises:
        ImportError: if it fails for whatever reason, with the first line of the cause and the steps.
    """
    try:
        return importlib.import_module(module)
    # Without ninja, a compiler or a folder to write to, torch raises errors of many kinds.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = lines[0] if lines else type(error).__name__
        raise ImportError(f"{library} cannot be imported ({cause}); {install}", name=module.split(".")[0]) from error
