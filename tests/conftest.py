"""Shared by all tests: golden fixtures, and the same random numbers in any order of tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"

# The suite runs in several processes; more threads than cores would only slow each other down.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """``golden("math")`` loads ``tests/golden/math.pt``, afresh at each call, so that tests may change it."""

    def load(name: str) -> dict[str, Any]:
        return torch.load(GOLDEN / f"{name}.pt", weights_only=True)

    return load


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN
