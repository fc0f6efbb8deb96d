from __future__ import annotations

import pytest

from tests.data.counting import write_counting_store
from tests.data.hub import Hub


@pytest.fixture
def counting_root(tmp_path):
    """A data set whose values say where they come from, removed with the test."""
    return write_counting_store(tmp_path / "counting")


@pytest.fixture
def hub(monkeypatch):
    """The hub that ``huggingface_hub`` talks to for the time of a test."""
    constants = pytest.importorskip("huggingface_hub.constants")
    served = Hub()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # so that small files come in several pieces
    monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield served
    served.close()
