"""Names that older simulators expect of their dependencies."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["compatibility_shim"]


@contextmanager
def compatibility_shim() -> Iterator[None]:
    """Lets DFlex and rewarped import and build with current numpy and gymnasium.

    Within the context, ``numpy.Inf``, which numpy 2 dropped, is ``numpy.inf`` again, and ``import gym`` finds gymnasium
    where no gym is installed. Both are undone at its end. Import and build the env inside; step it anywhere. It changes
    the process, not only this thread, and so nothing does it unasked.

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
    if "gym" not in sys.modules and importlib.util.find_spec("gym") is None:
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
    missing = not hasattr(np, "Inf")
    if missing:
        np.Inf = np.inf  # type: ignore[attr-defined]  # noqa: NPY201
    try:
        yield
    finally:
        for name in lent:
            sys.modules.pop(name, None)
        if missing:
            del np.Inf  # type: ignore[attr-defined]  # noqa: NPY201
