"""The table of faults counts what was tried, and says where something else happened."""

from __future__ import annotations

import re

import pytest

from benchmarks.learning.jobs import ROOT
from benchmarks.reliability.faults import FAULTS, Fault, Tried, rows

FAULT = Fault("a full disk", "one sentence", "tests/runs/test_stopping.py", "test_a_(full|closed)_disk")


def tried(name, *, passed=True, times=1):
    return Tried(FAULT.file, name, times, passed)


def test_a_row_has_how_often_it_was_tried_and_the_command():
    found = rows([FAULT], [tried("test_a_full_disk[1]", times=40), tried("test_a_closed_disk"), tried("test_b")])
    assert found == [
        '| a full disk | 41 | one sentence | `pytest tests/runs/test_stopping.py -k "test_a_full or test_a_closed"` |'
    ]


def test_what_failed_or_was_never_tried_is_not_in_the_table_as_if_it_held():
    assert (
        "**not so in 1 of 2 tests**"
        in rows([FAULT], [tried("test_a_full_disk", passed=False), tried("test_a_closed_disk")])[0]
    )
    with pytest.raises(ValueError, match=r"no test of .* tries 'a full disk'"):
        rows([FAULT], [tried("test_b")])


def test_there_are_forty_kinds_and_their_tests_are_there():
    assert len({fault.kind for fault in FAULTS}) == len(FAULTS) >= 40
    for fault in FAULTS:
        tests = re.findall(r"^def (test_\w+)", (ROOT / fault.file).read_text(), re.MULTILINE)
        function = re.split(r"\\\[|\.\*", fault.chosen)[0]  # without the parameters of its tests
        assert any(re.match(function, test) for test in tests), fault
