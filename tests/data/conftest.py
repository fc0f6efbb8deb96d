from __future__ import annotations

import pytest

from tests.data.counting import write_counting_store


@pytest.fixture
def counting_root(tmp_path):
    """A data set whose values say where they come from, removed with the test."""
    return write_counting_store(tmp_path / "counting")
