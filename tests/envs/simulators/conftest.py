"""Stand-ins for the libraries that a user installs by hand."""

from __future__ import annotations

import importlib.machinery
import sys

import pytest

from tests.envs.simulators import stand_ins
from torchrl_pwm.envs.simulators import dflex, rewarped


@pytest.fixture
def installed(monkeypatch):
    """Stand-ins for DFlex and rewarped; the module ``dflex``."""
    for name, module in {**stand_ins.dflex_modules(), **stand_ins.rewarped_modules()}.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(dflex, "_has_dflex", True)
    monkeypatch.setattr(rewarped, "_has_rewarped", True)
    monkeypatch.setattr(rewarped, "_has_newton", False)
    return sys.modules["dflex"]
