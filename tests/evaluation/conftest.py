from __future__ import annotations

import pytest


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, to look at what they hold."""
    Figure = pytest.importorskip("matplotlib.figure").Figure
    seen, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: seen.append(self) or save(self, *args, **kw))
    return seen
