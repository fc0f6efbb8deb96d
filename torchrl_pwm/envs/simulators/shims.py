"""Names that older simulators expect of their dependencies."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

__all__ = ["compatibility_shim"]


@contextmanager
def compatibility_shim() -> Iterator[None]:
    """Lets DFlex and rewarped import and build with current numpy, gymnasium and Python.

    Within the context, ``numpy.Inf``, which numpy 2 dropped, is ``numpy.inf`` again; ``import gym`` finds gymnasium
    where no gym is installed; and ``import imp``, which Python 3.12 dropped, finds the two functions that DFlex loads
    its compiled kernels with (DFlex itself has not been tested on such a Python). All is undone at the end. Import and
    build the env inside; step it anywhere. It changes the process, not only this thread, and so nothing does it
    unasked: ``DFlexEnv(..., shim=True)`` and ``RewarpedEnv(..., shim=True)`` ask for it where no ``with`` can stand, in
    a configuration or for worker processes.

    Raises:
        ImportError: if neither gym nor gymnasium is installed.

    Examples:
        >>> import numpy
        >>> with compatibility_shim():
        ...     import gym
        ...     print(numpy.Inf, hasattr(gym, "spaces"))
        inf True
    """
    lent: list[str] = []
    if _missing("gym"):
        try:
            for name in ("", ".spaces"):
                sys.modules[f"gym{name}"] = importlib.import_module(f"gymnasium{name}")
                lent.append(f"gym{name}")
        except ImportError as error:
            raise ImportError(
                'compatibility_shim stands in for gym with gymnasium, which is not installed; pip install "'
                'torchrl-pwm[gym]"',
                name="gymnasium",
            ) from error
    if _missing("imp"):
        sys.modules["imp"] = _imp()
        lent.append("imp")
    no_inf = not hasattr(np, "Inf")
    if no_inf:
        np.Inf = np.inf  # type: ignore[attr-defined]  # noqa: NPY201
    try:
        yield
    finally:
        for name in lent:
            sys.modules.pop(name, None)
        if no_inf:
            del np.Inf  # type: ignore[attr-defined]  # noqa: NPY201


def _missing(module: str) -> bool:
    return module not in sys.modules and importlib.util.find_spec(module) is None


def _imp() -> types.ModuleType:
    """A module with ``imp.find_module`` and ``imp.load_module``, as far as one module in one folder needs them."""

    def find_module(name: str, path: Sequence[str]) -> tuple[BinaryIO, str, None]:
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.origin is None:
            raise ImportError(f"no module {name!r} in {list(path)}", name=name)
        return open(spec.origin, "rb"), spec.origin, None

    def load_module(name: str, file: Any, path: str, description: Any) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no module", name=name)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    module = types.ModuleType("imp")
    module.find_module, module.load_module = find_module, load_module  # type: ignore[attr-defined]
    return module
