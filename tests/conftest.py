"""Shared by all tests: golden fixtures, and the same random numbers in any order of tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.data.hub import Hub

GOLDEN = Path(__file__).parent / "golden"

# The suite runs in several processes; more threads than cores would only slow each other down.
torch.set_num_threads(1)

# The same examples in every run, in any order of tests, and none kept between runs. To look for new ones:
# pytest tests/attacks --hypothesis-profile=search
settings.register_profile("same", derandomize=True, deadline=None, max_examples=50, database=None)
settings.register_profile("search", deadline=None, max_examples=5000, database=None)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """The CPU and, where there is one, the GPU: what is measured on both."""
    return request.param


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """``golden("math")`` loads ``tests/golden/math.pt``, afresh at each call, so that tests may change it."""

    def load(name: str) -> dict[str, Any]:
        return torch.load(GOLDEN / f"{name}.pt", weights_only=True)

    return load


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN


@pytest.fixture(scope="module")
def short_episodes() -> Iterator[None]:
    """MT80 with episodes of 20 steps in this process: for tests of what runs do with episodes, however long."""
    from torchrl_pwm.envs import tasks

    short = [dataclasses.replace(task, episode_length=20) for task in tasks.MT80]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks._TASK_SETS, "mt80", tasks.TaskSet("mt80", short))
        yield


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
