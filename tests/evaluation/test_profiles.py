"""Performance profiles against hand-computed values and rliable's, and the pictures of methods side by side."""

# ruff: noqa: NPY002, rliable draws from numpy's global generator

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from torchrl_pwm.evaluation import aggregate_scores, performance_profile, plot_aggregates, plot_profiles


def scores(seeds=5, tasks=8, seed=0):
    return np.random.default_rng(seed).uniform(size=(seeds, tasks))


def test_profile_counts_the_runs_above_each_threshold():
    found = performance_profile([[0.1, 0.9], [0.5, 1.0], [0.5, 0.2]], [-1.0, 0.1, 0.5, 0.95, 1.0], reps=0)
    # a run that equals the threshold is not above it
    assert found.values.tolist() == pytest.approx([1.0, 5 / 6, 2 / 6, 1 / 6, 0.0])
    assert found.low is None is found.high and (found.seeds, found.tasks) == (3, 2)


@pytest.mark.parametrize("confidence, low, high", [(0.5, 0.25, 0.75), (0.8, 0.25, 0.75), (0.95, 0.0, 1.0)])
def test_band_is_that_of_all_resamples(confidence, low, high):
    """Two seeds of two tasks, one of each above: the share in a resample is binomial (4, 1/2) / 4."""
    found = performance_profile([[0.2, 0.4], [0.8, 0.9]], [0.5], confidence=confidence, reps=20_000)
    assert (found.low[0], found.high[0]) == (low, high)


def test_area_under_the_profile_is_the_mean():
    matrix = scores()
    found = performance_profile(matrix, np.linspace(0, 1, 20_001), reps=0)
    assert found.values.mean() == pytest.approx(matrix.mean(), abs=1e-4)


def test_profile_and_band_are_rliable_s():
    library = pytest.importorskip("rliable.library")
    matrix, taus = scores(), np.linspace(0, 1, 21)
    state = np.random.get_state()
    try:
        np.random.seed(0)
        values, bands = library.create_performance_profile({"a": matrix}, taus, reps=2000)
    finally:
        np.random.set_state(state)
    found = performance_profile(matrix, taus, reps=2000)
    assert found.values == pytest.approx(values["a"])
    # different draws of the same bootstrap; a run more or less is 0.025
    assert np.abs(np.stack([found.low, found.high]) - bands["a"]).max() <= 0.0251


def test_band_narrows_with_seeds_and_covers_the_truth():
    """Uniform scores: the true share above tau is 1 - tau."""
    taus = np.array([0.25, 0.5, 0.75])
    covered = []
    for seed in range(60):
        found = performance_profile(scores(20, 5, seed), taus, reps=400)
        covered.append((found.low <= 1 - taus) & (1 - taus <= found.high))
    assert 0.88 <= np.mean(covered) <= 1.0
    few, many = (performance_profile(scores(seeds, 5), taus, reps=400) for seeds in (5, 80))
    assert (many.high - many.low < few.high - few.low).all()


def test_same_seed_same_band_and_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()
    first, again, other = (performance_profile(scores(), reps=200, seed=seed) for seed in (0, 0, 1))
    assert (first.low == again.low).all() and (first.low != other.low).any()
    assert (np.random.get_state()[1] == before).all()


def test_one_seed_has_no_band_and_plain_numbers_are_written():
    found = performance_profile(scores(seeds=1))
    assert found.low is None and len(found.thresholds) == 101
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


def test_profiles_are_drawn_with_bands_units_and_seeds(tmp_path, figures):
    path = plot_profiles({"PWM": scores(3, 4), "TD-MPC2": scores(1, 8)}, tmp_path / "profiles", title="toy")
    assert path == tmp_path / "profiles.png" and path.read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    assert "normalised score" in axes.get_xlabel() and "share of runs" in axes.get_ylabel()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["PWM (3 seeds, 4 tasks)", "TD-MPC2 (1 seed, 8 tasks)"]
    assert "95% stratified bootstrap" in axes.get_legend().get_title().get_text()
    assert len(axes.lines) == 2 and len(axes.collections) == 1
    expected = performance_profile(scores(3, 4))
    assert axes.lines[0].get_ydata() == pytest.approx(expected.values)


def test_aggregates_are_drawn_with_their_intervals(tmp_path, figures):
    pytest.importorskip("rliable")
    content = {"PWM": scores(3, 4), "TD-MPC2": scores(1, 4)}
    plot_aggregates(content, tmp_path / "a.svg", units="return / 1000")
    panels = figures[0].axes
    assert [axes.get_title("left") for axes in panels] == ["interquartile mean", "mean", "median"]
    assert figures[0].get_supxlabel() == "return / 1000" and "95%" in figures[0].get_suptitle()
    bar, mark, alone = panels[0].lines
    found = aggregate_scores(content["PWM"]).iqm
    assert [*bar.get_xdata(), *mark.get_xdata()] == [found.low, found.high, found.value]
    assert [*alone.get_xdata()] == [aggregate_scores(content["TD-MPC2"]).iqm.value]
    assert panels[0].get_yticklabels()[0].get_text() == "PWM (3 seeds, 4 tasks)"


def test_nothing_to_plot_and_missing_matplotlib_are_refused(tmp_path, monkeypatch):
    for plot in (plot_profiles, plot_aggregates):
        with pytest.raises(ValueError, match="nothing to plot"):
            plot({}, tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "torchrl-pwm\[plots\]"'):
        plot_profiles({"a": scores()}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
