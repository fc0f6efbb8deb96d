"""Memory along evaluations: what the benchmark measures, and what its table says of it."""

from __future__ import annotations

import pytest

pytest.importorskip("dm_control")

from benchmarks.reliability import memory


@pytest.mark.parametrize("make", [memory.kept_envs, memory.kept_simulators, memory.by_name])
def test_memory_is_read_after_evaluations(make, monkeypatch):
    monkeypatch.setitem(memory.CASES, "case", ("pendulum-swingup", 3, make))
    found = list(memory.measured("case", steps=2))
    assert [number for number, _ in found] == [1, 2, 3]
    assert all(50 < megabytes < 50_000 for _, megabytes in found)


def test_the_table_says_whether_what_is_kept_stays_within_a_tenth():
    assert memory.row("kept", [(1, 100.0), (2, 109.0), (3, 105.0)]) == (
        "| kept | 3 | 100 | 105 | 100 to 109 | 9.0% | yes |"
    )
    assert memory.row("kept", [(1, 100.0), (2, 111.0)]).endswith("| 11.0% | **no** |")
    assert memory.row("built anew", [(1, 100.0), (2, 150.0)]).endswith("| 50.0% | - |")
