"""Pictures of scores, by task and by method."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.rows import TWO_SEEDS, scores
from torchrl_pwm.envs import MT80
from torchrl_pwm.evaluation import (
    aggregate_scores,
    make_summary,
    performance_profile,
    plot_aggregates,
    plot_profiles,
    plot_scores,
)
from torchrl_pwm.evaluation.scores import find_task_spec


def summary(names, **changes):
    rows = []
    for number, name in enumerate(names):
        spec = find_task_spec(name)
        score = None if spec is None else round(((number * 7) % 10) / 10, 1)
        success = score if spec is not None and spec.score_rule == "success" else None
        top = 1000.0 if spec is None else spec.max_return
        rows.append(
            {
                "task": name,
                "return_mean": 0.5 * top,
                "return_std": 0.1 * top,
                "success": success,
                "score": score,
                "behavior_return_mean": 0.3 * top,
                "episodes": 10,
                "seconds_extraction": 1.0,
                **changes,
            }
        )
    return make_summary(rows, seed=0, seconds_total=1)


def bars(axes):
    return [patch.get_width() for container in axes.containers[:] for patch in getattr(container, "patches", [])]


def test_score_plot_holds_the_scores_the_data_and_the_published_scores(tmp_path, figures):
    content = summary(["walker-walk", "mw-reach"])
    path = plot_scores(content, tmp_path / "scores")
    assert path == tmp_path / "scores.png" and Image.open(path).size[0] > 1000
    left, right = figures[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["walker-walk", "mw-reach"]
    assert bars(left) == [row["score"] for row in content["tasks"]]
    assert bars(right) == pytest.approx([0.5, 0.5, 0.3, 0.3])
    marks = {scatter.get_label(): scatter.get_offsets()[:, 0].tolist() for scatter in left.collections[-2:]}
    assert marks == {"published PWM": [0.984258, 0.8], "published TD-MPC2": [0.900634, 0.8]}
    assert "score" in left.get_xlabel() and "return" in right.get_xlabel()
    assert "seed 0" in figures[0].legends[0].get_title().get_text()


def test_score_plot_of_80_tasks_has_a_readable_line_for_each(tmp_path, figures):
    plot_scores(summary(MT80.names), tmp_path / "all.png")
    figure = figures[0]
    labels = figure.axes[0].get_yticklabels()
    boxes = [label.get_window_extent(figure.canvas.get_renderer()) for label in labels]
    tops = sorted((box.y0, box.y1) for box in boxes)
    assert len(tops) == 80
    assert all(upper[0] >= lower[1] - 0.5 for lower, upper in itertools.pairwise(tops)), "labels overlap"
    assert min(box.x0 for box in boxes) >= 0, "labels are cut"


def test_score_plot_takes_envs_outside_the_tables_and_missing_data(tmp_path, figures):
    plot_scores(summary(["Pendulum-v1", "walker-run"], behavior_return_mean=None), tmp_path / "a.png")
    texts = [text.get_text() for text in figures[0].axes[0].texts]
    assert texts == ["return 500 (no score: not in a task table)"]
    assert "1 task of 2" in figures[0].get_suptitle()


def error_bars(axes):
    (bars,) = [container for container in axes.containers if hasattr(container, "has_xerr")]
    return [segment[:, 0].tolist() for segment in bars.lines[2][0].get_segments() if len(segment)]


@pytest.mark.parametrize("score", [0.02, 0.5, 0.98])
def test_error_bars_are_standard_errors_that_stay_within_the_scale(tmp_path, figures, score):
    plot_scores(summary(["walker-run", "mw-reach"], score=score), tmp_path / "a.png")
    errors = np.array([0.1, np.sqrt(score * (1 - score))]) / np.sqrt(10)
    left, right = figures[0].axes
    assert error_bars(left) == [pytest.approx(np.clip([score - error, score + error], 0, 1)) for error in errors]
    assert error_bars(right) == [pytest.approx([0.5 - errors[0], 0.5 + errors[0]])] * 2


def test_empty_summary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no task"):
        plot_scores(make_summary([], seed=0, seconds_total=1), tmp_path / "a.png")


@pytest.mark.parametrize(
    "module, call",
    [
        ("matplotlib.figure", lambda path: plot_scores(summary(["walker-run"]), path / "a.png")),
    ],
)
def test_missing_extra_names_the_install_command(tmp_path, monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "torchrl-pwm\[plots\]"'):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


def test_plotting_leaves_the_backend_and_pyplot_alone_and_import_needs_no_plotting_library(tmp_path):
    code = """
import sys
import torchrl_pwm.evaluation as evaluation
from torchrl_pwm.evaluation import evaluate_policy, make_summary, plot_scores, film_strip
heavy = {"matplotlib", "PIL", "metaworld", "dm_control", "hydra"} & set(sys.modules)
assert not heavy, heavy
row = dict(task="walker-run", return_mean=1.0, return_std=0.0, success=None, score=0.1,
           behavior_return_mean=1.0, episodes=1, seconds_extraction=None)
plot_scores(make_summary([row], seed=0, seconds_total=1), sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
assert set(evaluation.__all__) <= set(dir(evaluation)) and all(hasattr(evaluation, n) for n in evaluation.__all__)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True, timeout=120)


def test_picture_shows_each_seed_and_baseline_in_place_of_error_bars(tmp_path, figures):
    plot_scores(make_summary(TWO_SEEDS, seed=0, seconds_total=60.0), tmp_path / "scores.png")
    left, right = figures[0].axes
    marks = {scatter.get_label(): scatter.get_offsets()[:, 0].tolist() for scatter in left.collections}
    assert marks["policy, each seed"] == [0.2, 0.6, 1.0, 0.8]
    assert marks["behaviour cloning"] == [0.4, 0.9] and marks["random actions"] == [0.05, 0.05]
    assert [patch.get_width() for patch in left.patches] == [0.4, 0.9]
    assert [s.get_offsets()[:, 0].tolist() for s in right.collections if s.get_label() == "policy, each seed"] == [
        pytest.approx([0.2, 0.6, 1.0, 0.8])
    ]
    assert not any(error_bars(left) + error_bars(right))
    assert "over 2 seeds" in figures[0].legends[0].get_title().get_text()


def test_profiles_are_drawn_with_bands_units_and_seeds(tmp_path, figures):
    pytest.importorskip("rliable")
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
    result = aggregate_scores(content["PWM"]).iqm
    assert [*bar.get_xdata(), *mark.get_xdata()] == [result.low, result.high, result.value]
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
