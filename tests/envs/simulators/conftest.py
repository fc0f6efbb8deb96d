"""Stand-ins for the libraries that a user installs by hand."""

from __future__ import annotations

import importlib.machinery
import importlib.util
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


class _Failing:
    """Finds one module, whose import raises."""

    def __init__(self, name, error):
        self.name, self.error = name, error

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise self.error


@pytest.fixture
def failing_import(monkeypatch):
    """A function that makes the import of a module raise an error."""

    def fail(name, error):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "meta_path", [_Failing(name, error), *sys.meta_path])

    return fail
