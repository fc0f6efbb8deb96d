"""Versions of Python and of the packages that results depend on."""

from __future__ import annotations

import importlib.metadata
import platform

_PACKAGES = ("torch", "torchrl", "tensordict", "torchrl-pwm", "numpy", "mujoco", "dm_control", "metaworld")


def versions() -> dict[str, str]:
    """Versions by the name under which a package is installed; packages that are absent are left out."""
    result = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return result


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, by the name under which each is imported.

    Packages that are not installed are left out.

    Examples:
        >>> {"python", "torch", "torchrl"} <= set(package_versions())
        True
    """
    return {name.replace("-", "_"): version for name, version in versions().items()}
