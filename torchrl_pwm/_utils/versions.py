"""Versions of the packages that results depend on."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = ("torchrl-pwm", "torch", "torchrl", "tensordict", "numpy", "mujoco", "dm_control", "metaworld")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; packages that are absent are left out."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
