"""Aggregates of scores against known numbers, rliable's own estimators and simulated coverage."""

# ruff: noqa: NPY002, rliable draws from numpy's global generator

from __future__ import annotations

import sys

import numpy as np
import pytest

from torchrl_pwm.evaluation import aggregate_scores


@pytest.fixture
def rliable():
    return pytest.importorskip("rliable.library")


def scores(seeds=5, tasks=8, seed=0):
    return np.random.default_rng(seed).uniform(size=(seeds, tasks))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (3, 5), (5, 8), (10, 80)])
def test_aggregates_are_rliable_s(rliable, shape):
    from rliable import metrics

    matrix = scores(*shape)
    found = aggregate_scores(matrix, reps=0)
    assert found.iqm.value == pytest.approx(metrics.aggregate_iqm(matrix), abs=1e-12)
    assert found.mean.value == pytest.approx(metrics.aggregate_mean(matrix), abs=1e-12)
    assert found.median.value == pytest.approx(metrics.aggregate_median(matrix), abs=1e-12)
    assert (found.seeds, found.tasks) == shape


def test_interquartile_mean_is_over_runs_and_ignores_the_outer_quarters():
    matrix = np.array([[0.0, 0.4, 0.5, 0.9], [0.1, 0.4, 0.5, 1.0]])
    assert aggregate_scores(matrix, reps=0).iqm.value == pytest.approx(0.45)
    matrix[0, 0] = -100.0
    found = aggregate_scores(matrix, reps=0)
    assert found.iqm.value == pytest.approx(0.45) and found.mean.value < 0


def test_interval_is_rliable_s_with_the_same_draws(rliable):
    from rliable import metrics

    matrix = scores()
    found = aggregate_scores(matrix, reps=300, seed=4)
    state = np.random.get_state()
    try:
        np.random.seed(4)
        _, bounds = rliable.get_interval_estimates(
            {"a": matrix}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=300
        )
    finally:
        np.random.set_state(state)
    assert (found.iqm.low, found.iqm.high) == pytest.approx(tuple(bounds["a"][:, 0]), abs=1e-12)


def test_same_seed_same_interval_and_the_global_generator_is_left_alone(rliable):
    before = np.random.get_state()[1].copy()
    first, again, other = (aggregate_scores(scores(), reps=200, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.iqm != other.iqm and first.iqm.value == other.iqm.value
    assert (np.random.get_state()[1] == before).all()


def test_intervals_hold_the_value_and_widen_with_the_level(rliable):
    narrow, wide = (aggregate_scores(scores(), reps=500, confidence=level) for level in (0.5, 0.99))
    for name in ("iqm", "mean", "median"):
        inner, outer = getattr(narrow, name), getattr(wide, name)
        assert outer.low < inner.low < inner.value < inner.high < outer.high


def test_interval_of_the_mean_is_the_normal_one_for_many_seeds(rliable):
    matrix = scores(seeds=60, tasks=4)
    found = aggregate_scores(matrix, reps=3000).mean
    error = np.sqrt((matrix.var(0) / 60).sum()) / 4
    assert (found.low, found.high) == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error), abs=0.004)


def test_differences_between_tasks_alone_give_no_uncertainty(rliable):
    found = aggregate_scores(np.repeat([[0.1, 0.5, 0.9]], 4, axis=0), reps=50)
    assert found.mean.low == pytest.approx(found.mean.high) == pytest.approx(0.5)


def test_one_seed_has_no_interval():
    found = aggregate_scores(scores(seeds=1))
    assert (found.iqm.low, found.iqm.high, found.mean.low) == (None, None, None)
    assert found.to_dict()["iqm"] == {"value": found.iqm.value, "low": None, "high": None}


@pytest.mark.parametrize("wrong", [[0.1, 0.2], [[]], [[0.1, float("nan")]], [[[0.1]]]])
def test_scores_of_another_form_are_refused(wrong):
    with pytest.raises(ValueError, match=r"finite numbers of shape \[seeds, tasks\]"):
        aggregate_scores(wrong)


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"confidence": 0.0}, {"reps": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\)"):
        aggregate_scores([[0.5]], **options)


def test_missing_rliable_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "rliable.library", None)
    with pytest.raises(ImportError, match=r'pip install "torchrl-pwm\[stats\]"'):
        aggregate_scores(scores(2, 2))
    assert aggregate_scores(scores(2, 2), reps=0).iqm.low is None
