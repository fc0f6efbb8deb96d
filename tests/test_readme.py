"""The README shows the snippets that the tests run, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["plain_loop.py", "torchrl_trainer.py", "own_simulator.py", "own_env.py"])
def test_readme_holds_the_snippet(name: str) -> None:
    snippet = (ROOT / "examples" / "readme" / name).read_text()
    assert f"```python\n{snippet}```" in (ROOT / "README.md").read_text()
