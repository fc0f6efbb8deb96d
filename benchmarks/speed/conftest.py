"""Options of the speed suite, and the table at its end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from benchmarks.speed.record import Result, table, write
from benchmarks.speed.sizes import SIZES

RESULTS = Path(__file__).parents[1] / "results"
results_key = pytest.StashKey[list[Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("speed")
    group.addoption("--size", choices=sorted(SIZES), default="small", help="networks and batches; paper: 48M")
    group.addoption("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    group.addoption("--threads", type=int, default=2, help="torch's threads")
    group.addoption("--rounds", type=int, default=7, help="rounds of each slow case; fast ones take five times as many")
    group.addoption("--backend", default="inductor", help="of torch.compile")
    group.addoption(
        "--record", nargs="?", type=Path, const=RESULTS, default=None, help="write the results; to benchmarks/results"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[results_key] = []


@pytest.fixture
def results(request: pytest.FixtureRequest) -> list[Result]:
    """Where a case leaves its result."""
    return request.config.stash[results_key]


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return chosen_device(request.config)


def chosen_device(config: pytest.Config) -> torch.device:
    return torch.device(config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[results_key]
    if not results:
        return
    size, threads = config.getoption("--size"), config.getoption("--threads")
    terminalreporter.section("speed")
    terminalreporter.write_line(f"{SIZES[size].describe()} {threads} threads.\n{table(results)}")
    folder = config.getoption("--record")
    if folder is None:
        return
    paths = write(
        folder,
        results,
        size=size,
        device=chosen_device(config),
        threads=threads,
        backend=config.getoption("--backend"),
        command=f"python -m pytest {shlex.join(config.invocation_params.args)}",
    )
    terminalreporter.write_line(f"\nwritten: {', '.join(path.name for path in paths)}")
