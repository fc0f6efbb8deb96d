"""Aggregates, performance profiles and methods side by side: known numbers, rliable's own and simulated coverage."""

# ruff: noqa: NPY002, rliable draws from numpy's global generator

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tests.evaluation.rows import TWO_SEEDS, full_row, outcome, scores
from torchrl_pwm.evaluation import aggregate_scores, performance_profile
from torchrl_pwm.evaluation.statistics import compare_methods, headline, method_scores


@pytest.fixture
def rliable():
    return pytest.importorskip("rliable.library")


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (3, 5), (5, 8), (10, 80)])
def test_aggregates_are_rliable_s(rliable, shape):
    from rliable import metrics

    matrix = scores(*shape)
    result = aggregate_scores(matrix, reps=0)
    assert result.iqm.value == pytest.approx(metrics.aggregate_iqm(matrix), abs=1e-12)
    assert result.mean.value == pytest.approx(metrics.aggregate_mean(matrix), abs=1e-12)
    assert result.median.value == pytest.approx(metrics.aggregate_median(matrix), abs=1e-12)
    assert (result.seeds, result.tasks) == shape


def test_interquartile_mean_is_over_runs_and_ignores_the_outer_quarters():
    matrix = np.array([[0.0, 0.4, 0.5, 0.9], [0.1, 0.4, 0.5, 1.0]])
    assert aggregate_scores(matrix, reps=0).iqm.value == pytest.approx(0.45)
    matrix[0, 0] = -100.0
    result = aggregate_scores(matrix, reps=0)
    assert result.iqm.value == pytest.approx(0.45) and result.mean.value < 0


def test_interval_is_rliable_s_with_the_same_draws(rliable):
    from rliable import metrics

    matrix = scores()
    result = aggregate_scores(matrix, reps=300, seed=4)
    state = np.random.get_state()
    try:
        np.random.seed(4)
        _, bounds = rliable.get_interval_estimates(
            {"a": matrix}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=300
        )
    finally:
        np.random.set_state(state)
    assert (result.iqm.low, result.iqm.high) == pytest.approx(tuple(bounds["a"][:, 0]), abs=1e-12)


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
    result = aggregate_scores(matrix, reps=3000).mean
    error = np.sqrt((matrix.var(0) / 60).sum()) / 4
    assert (result.low, result.high) == pytest.approx(
        (result.value - 1.96 * error, result.value + 1.96 * error), abs=0.004
    )


def test_differences_between_tasks_alone_give_no_uncertainty(rliable):
    result = aggregate_scores(np.repeat([[0.1, 0.5, 0.9]], 4, axis=0), reps=50)
    assert result.mean.low == pytest.approx(result.mean.high) == pytest.approx(0.5)


def test_one_seed_has_no_interval():
    result = aggregate_scores(scores(seeds=1))
    assert (result.iqm.low, result.iqm.high, result.mean.low) == (None, None, None)
    assert result.to_dict()["iqm"] == {"value": result.iqm.value, "low": None, "high": None}


@pytest.mark.parametrize("wrong", [[0.1, 0.2], [[]], [[0.1, float("nan")]], [[[0.1]]]])
def test_scores_of_another_form_are_refused(wrong):
    with pytest.raises(ValueError, match=r"finite numbers of shape \[seeds, tasks\]"):
        aggregate_scores(wrong)


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"confidence": 0.0}, {"reps": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\)"):
        aggregate_scores([[0.5]], **options)


@pytest.mark.parametrize("estimate", [aggregate_scores, performance_profile])
def test_missing_rliable_names_the_install_command(monkeypatch, estimate):
    monkeypatch.setitem(sys.modules, "rliable.library", None)
    with pytest.raises(ImportError, match=r'pip install "torchrl-pwm\[stats\]"'):
        estimate(scores(2, 2))
    assert (estimate(scores(2, 2), reps=0).tasks, estimate(scores(1, 2)).tasks) == (2, 2)


def test_scores_of_each_method_are_those_of_its_seeds():
    result = {method: method_scores(TWO_SEEDS[0], method) for method in ("policy", "cloning", "data", "random", "pwm")}
    assert result == {"policy": [0.2, 0.6], "cloning": [0.5, 0.3], "data": [0.3], "random": [0.05], "pwm": [0.9]}
    plain = {"score": None}
    assert method_scores(plain, "policy") == method_scores(plain, "cloning") == method_scores(plain, "pwm") == []


def test_each_method_is_aggregated_over_its_seeds_and_tasks():
    pytest.importorskip("rliable")
    result = compare_methods(TWO_SEEDS)
    assert list(result) == ["policy", "cloning", "data", "random", "pwm", "tdmpc2"]
    assert result["policy"] == aggregate_scores([[0.2, 1.0], [0.6, 0.8]]).to_dict()
    assert result["data"]["iqm"] == {"value": pytest.approx(0.3), "low": None, "high": None}


def test_a_task_without_a_score_is_left_out_and_counted():
    unscored = full_row("mw-reach", [1.0, 0.8])
    unscored["baselines"]["data"] = {**outcome("mw-reach", 0.3), "success": None, "score": None}
    result = compare_methods([TWO_SEEDS[0], unscored])
    assert (result["policy"]["tasks"], result["data"]["tasks"], result["cloning"]["tasks"]) == (2, 1, 1)


def test_few_tasks_are_headed_by_their_mean():
    assert headline(compare_methods(TWO_SEEDS)["policy"]) == ("mean", "mean")
    four = [full_row(task, [0.5]) for task in ("walker-run", "mw-reach", "cup-catch", "mw-push")]
    assert headline(compare_methods(four)["policy"]) == ("iqm", "interquartile mean")


def test_profile_counts_the_runs_above_each_threshold():
    result = performance_profile([[0.1, 0.9], [0.5, 1.0], [0.5, 0.2]], [-1.0, 0.1, 0.5, 0.95, 1.0], reps=0)
    # a run that equals the threshold is not above it
    assert result.values.tolist() == pytest.approx([1.0, 5 / 6, 2 / 6, 1 / 6, 0.0])
    assert result.low is None is result.high and (result.seeds, result.tasks) == (3, 2)


@pytest.mark.parametrize("confidence, low, high", [(0.5, 0.25, 0.75), (0.8, 0.25, 0.75), (0.95, 0.0, 1.0)])
def test_band_is_that_of_all_resamples(rliable, confidence, low, high):
    """Two seeds of two tasks, one of each above: the share in a resample is binomial (4, 1/2) / 4."""
    result = performance_profile([[0.2, 0.4], [0.8, 0.9]], [0.5], confidence=confidence, reps=20_000)
    assert (result.low[0], result.high[0]) == (low, high)


def test_area_under_the_profile_is_the_mean():
    matrix = scores()
    result = performance_profile(matrix, np.linspace(0, 1, 20_001), reps=0)
    assert result.values.mean() == pytest.approx(matrix.mean(), abs=1e-4)


def test_profile_and_band_are_rliable_s_with_the_same_draws(rliable):
    matrix, taus = scores(), np.linspace(0, 1, 21)
    state = np.random.get_state()
    try:
        np.random.seed(4)
        values, bands = rliable.create_performance_profile({"a": matrix}, taus, reps=300)
    finally:
        np.random.set_state(state)
    profile = performance_profile(matrix, taus, reps=300, seed=4)
    assert profile.values == pytest.approx(values["a"], abs=1e-12)
    assert np.stack([profile.low, profile.high]) == pytest.approx(bands["a"], abs=1e-12)


def test_same_seed_same_band_and_the_global_generator_is_left_alone(rliable):
    before = np.random.get_state()[1].copy()
    first, again, other = (performance_profile(scores(), reps=200, seed=seed) for seed in (0, 0, 1))
    assert (first.low == again.low).all() and (first.low != other.low).any()
    assert (np.random.get_state()[1] == before).all()


def test_one_seed_has_no_band_and_plain_numbers_are_written(rliable):
    result = performance_profile(scores(seeds=1))
    assert result.low is None and len(result.thresholds) == 101
    content = json.loads(json.dumps(performance_profile(scores(), [0.2, 0.4], reps=10).to_dict()))
    assert content["thresholds"] == [0.2, 0.4] and len(content["low"]) == 2 and content["seeds"] == 5


@pytest.mark.parametrize("wrong", [[], [0.5, 0.2], [0.1, float("nan")], [[0.1]]])
def test_thresholds_of_another_form_are_refused(wrong):
    with pytest.raises(ValueError, match=r"thresholds must be finite, ascending numbers of shape \[K\]"):
        performance_profile(scores(), wrong)


def test_scores_and_options_are_refused_as_those_of_aggregates():
    with pytest.raises(ValueError, match=r"finite numbers of shape \[seeds, tasks\]"):
        performance_profile([0.1, 0.2])
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\)"):
        performance_profile(scores(), confidence=1.5)
