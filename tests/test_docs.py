"""Every example in a docstring runs and says the truth."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import torchrl_pwm
from tests.optional import is_optional

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [torchrl_pwm.__name__, *(m.name for m in pkgutil.walk_packages(torchrl_pwm.__path__, "torchrl_pwm."))]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        skip_if_optional(error)
    torch.manual_seed(0)
    try:
        doctest.testmod(module, optionflags=FLAGS, raise_on_error=True)
    except doctest.DocTestFailure as failure:
        example = failure.example
        pytest.fail(f"{failure.test.name}:\n{example.source}expected:\n{example.want}found:\n{failure.got}")
    except doctest.UnexpectedException as failure:
        skip_if_optional(failure.exc_info[1])


def skip_if_optional(error):
    """Skips where an extra is missing; anything else is an error."""
    if not is_optional(error):
        raise error
    pytest.skip(f"an extra is not installed: {error}")


@pytest.mark.parametrize("name", torchrl_pwm.__all__)
def test_public_names_are_documented_with_an_example(name):
    public = getattr(torchrl_pwm, name)
    if callable(public):
        assert ">>> " in (public.__doc__ or ""), f"{name} has no example"
