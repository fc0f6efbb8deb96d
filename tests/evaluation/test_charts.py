"""Scales, ticks and paths of line charts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from torchrl_pwm.evaluation.charts import Curve, line_chart, mean_curve, ticks


@pytest.mark.parametrize("low", [-1e6, -3.7, -0.02, 0.0, 1e-7, 5.0])
@pytest.mark.parametrize("span", [0.0, 1e-6, 0.3, 7.0, 999.0, 1e6])
def test_ticks_enclose_the_values_and_are_few(low, span):
    marks = ticks(low, low + span)
    assert marks[0] <= low + 1e-9 * abs(low) and marks[-1] >= low + span - 1e-9 * abs(low + span)
    assert 2 <= len(marks) <= 8
    assert all(b > a for a, b in itertools.pairwise(marks))


def test_mean_is_over_common_positions():
    x, y = mean_curve(
        [(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])), (np.array([4.0, 6.0]), np.array([4, 5]))]
    )
    assert x.tolist() == [4.0, 6.0] and y.tolist() == [3.0, 4.0]


def curve(*values, x=None):
    return Curve("a", "b", np.arange(len(values), dtype=float) if x is None else np.array(x), np.array(values, float))


def test_points_are_at_their_place_and_gaps_interrupt_the_path():
    chart = line_chart([curve(0.0, float("nan"), 10.0, 5.0)], width=100, height=100, margin=(0, 0, 0, 0))
    ((_, _, path, points),) = chart.paths
    assert path == "M0 100M66.7 0L100 50" and points == [(0.0, 100.0), (66.7, 0.0), (100.0, 50.0)]
    assert chart.y_ticks[0] == (100.0, "0") and chart.y_ticks[-1] == (0.0, "10")


def test_level_lines_widen_the_scale():
    chart = line_chart([curve(1.0, 2.0)], levels={"data": ("m", 10.0)}, width=100, height=100, margin=(0, 0, 0, 0))
    ((label, style, y),) = chart.levels
    assert (label, style, y) == ("data", "m", 0.0) and chart.paths[0][3][0][1] > 85


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9])
def test_constant_curves_and_single_points_have_a_place_inside(value):
    for line in (curve(value, value), curve(value, x=[7.0])):
        chart = line_chart([line])
        left, top, right, bottom = chart.frame
        assert all(left <= x <= right and top <= y <= bottom for _, _, _, points in chart.paths for x, y in points)


def test_nothing_to_draw_is_refused():
    for curves in ([], [curve(float("nan"))]):
        with pytest.raises(ValueError, match="no curve has a finite value"):
            line_chart(curves)
