"""What PWM must show: criteria with their numbers, paired differences, and curves that are flat or not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rliable")

from benchmarks.learning.criteria import (
    criteria,
    criteria_sentences,
    difference_rows,
    differences,
    slope_sentences,
    slopes,
)
from benchmarks.learning.rows import Curve, Records


def make_records(**scores):
    """Scores [seeds][tasks] of last policies by method; the best ones are perfect."""
    records = Records()
    for method, matrix in scores.items():
        for seed, row in enumerate(matrix):
            for task, score in zip("ab", row):
                records.add(method, task, seed, [score], score=score, select="last", score_best=1.0)
    records.references = {task: {"the data's behaviour": 0.6} for task in "ab"}
    return records


PWM = [[0.95, 0.99], [0.96, 0.98], [0.97, 0.97]]


def test_all_criteria_are_passed_by_a_method_that_is_above_all():
    records = make_records(pwm=PWM, cloning_half=[[0.8, 0.8], [0.81, 0.82], [0.8, 0.83]], tdmpc2=[[0.5, 0.9]] * 3)
    found = criteria(records, 0.95)
    assert [entry["passed"] for entry in found] == [True] * 4
    assert "0.970" in found[0]["found"] and "below in 0 of 2 tasks" in found[2]["found"]


def test_a_margin_whose_intervals_meet_is_no_pass():
    wide = [[0.3, 0.9], [0.95, 1.0], [1.0, 0.99]]
    found = criteria(make_records(pwm=PWM, cloning_half=wide, tdmpc2=PWM), 0.95)
    assert [entry["passed"] for entry in found[:2]] == [False, False]
    assert found[0]["found"].count("[") == 3 and found[1]["tasks"] == []
    alone = criteria(make_records(pwm=PWM[:1], cloning_half=[[0.5, 0.5]]), 0.95)
    assert [entry["passed"] for entry in alone[:2]] == [False, None]


def test_where_a_criterion_fails_the_trust_probe_speaks_of_the_tasks_that_fall_short():
    records = make_records(pwm=[[0.5, 0.99], [0.55, 0.98]])
    content = {"criteria": criteria(records, 0.95), "trust": {"a": {"0": "exploits its model"}}}
    said = list(criteria_sentences(content))
    assert any(line.startswith("fail: no task below its data's mean: below in 1 of 2 tasks: a 0.5") for line in said)
    assert said.count("a falls short: seed 0 exploits its model.") == 2
    assert not any(line.startswith("b falls short") for line in said)


def test_differences_are_paired_by_seed():
    # Seeds differ by far more than the methods: only pairs show that one is above the other.
    own = [[0.2, 0.3], [0.5, 0.6], [0.8, 0.9]]
    records = make_records(pwm=own, iql=[[score - 0.1 for score in row] for row in own])
    (entry,) = differences(records, 0.95)
    assert (entry["method"], entry["seeds"]) == ("iql", 3)
    assert [entry[key] for key in ("difference", "low", "high")] == pytest.approx([0.1, 0.1, 0.1])
    assert differences(make_records(iql=own), 0.95) == []


def test_who_earns_more_is_counted_beside_the_score():
    """Both succeed in each episode, and one of them sooner: its score, which is success, says nothing of it."""
    records = Records()
    for method, returns in (("pwm", {"a": 900, "b": 500}), ("iql", {"a": 400, "b": 510})):
        for task, earned in returns.items():
            records.add(method, task, 0, [earned], score=1.0, select="last", score_best=1.0)
    (entry,) = differences(records, 0.95)
    assert (entry["difference"], entry["higher"], entry["tasks"]) == (0.0, 1, 2)
    assert list(difference_rows({"differences": [entry]})) == [["IQL", "+0.000", "1 of 2 tasks", "1"]]


def test_a_flat_curve_has_no_slope_and_rounds_are_told_apart():
    amount = np.arange(1.0, 13.0)
    score = np.concatenate([np.linspace(0, 0.6, 6), [0.6, 0.6, 0.6], [0.7, 0.8, 0.9]])
    curve = Curve("tdmpc2_prior", 0, None, 1000 * amount, amount, score, before_rounds=9000.0)
    before, all_of_it = slopes([curve])
    assert before["slope"] == pytest.approx(0.0, abs=1e-9) and (before["begin"], before["end"]) == (6000, 9000)
    assert all_of_it["slope"] == pytest.approx(0.32, abs=0.05) and all_of_it["rounds"]
    first, second = slope_sentences({"slopes": [before, all_of_it]})
    assert "before its rounds: +0.000" in first.replace("-0.000", "+0.000") and "rounds included" in second
