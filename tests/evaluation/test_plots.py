from __future__ import annotations

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from torchrl_pwm.envs import MT80
from torchrl_pwm.evaluation import (
    film_pictures,
    film_strip,
    make_summary,
    plot_scores,
    plot_training,
    plots,
    read_metrics,
    save_video,
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


def test_error_bars_are_standard_errors_that_stay_within_the_scale():
    rows = summary(["walker-run"])["tasks"]
    assert plots._score_error(rows[0], MT80["walker-run"]) == pytest.approx(0.1 / np.sqrt(10))
    assert plots._score_error({**rows[0], "score": 0.5}, MT80["mw-reach"]) == pytest.approx(0.5 / np.sqrt(10))
    assert plots._clipped_errors([(0.95, 0.2), (0.1, 0.2)]).tolist() == pytest.approx(
        np.array([[0.2, 0.1], [0.05, 0.2]])
    )


def test_empty_summary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no task"):
        plot_scores(make_summary([], seed=0, seconds_total=1), tmp_path / "a.png")


def test_training_plot_shows_predicted_beside_real_return_from_a_table(tmp_path, figures):
    table = tmp_path / "metrics.csv"
    table.write_text("iteration,predicted_return,real_return,loss\n0,1.0,,3\n10,2.0,0.5,\n20,4.0,,1\n")
    path = plot_training(table, tmp_path / "curves.png", references={"mean of the data": 3.0}, title="toy, seed 0")
    assert Image.open(path).format == "PNG"
    (axes,) = figures[0].axes
    curves = {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.lines}
    assert set(curves) == {"predicted return", "real return", "mean of the data"}
    assert curves["predicted return"][1].tolist() == [1.0, 2.0, 4.0]
    assert curves["real return"][0].tolist() == [10.0] and curves["real return"][1].tolist() == [0.5]
    assert axes.get_xlabel() == "iteration" and axes.get_ylabel() == "return of an episode"


def test_metrics_are_read_from_files_of_torchrl_s_csv_logger(tmp_path):
    from torchrl.record import CSVLogger

    logger = CSVLogger("run", log_dir=str(tmp_path))
    for step in (0, 5):
        logger.log_scalar("eval/real_return", 2.0 * step, step=step)
        logger.log_scalar("loss", 1.0 * step, step=step)
    series = read_metrics(tmp_path)
    assert set(series) == {"eval/real_return", "loss"}
    assert series["eval/real_return"][0].tolist() == [0.0, 5.0]
    assert series["eval/real_return"][1].tolist() == [0.0, 10.0]


def test_metrics_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metrics under"):
        read_metrics(tmp_path)
    broken = tmp_path / "broken.csv"
    broken.write_text("step,loss\n0,high\n")
    with pytest.raises(ValueError, match=r"broken\.csv holds 'high'"):
        read_metrics(broken)
    with pytest.raises(ValueError, match=r"none of the metrics .*real_return.* was logged; there are \['loss'\]"):
        plot_training({"loss": (np.arange(3), np.arange(3))}, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def film(steps=21, height=20, width=30):
    return np.broadcast_to(np.arange(steps, dtype=np.uint8)[:, None, None, None], (steps, height, width, 3)).copy()


def test_film_strip_shows_the_first_and_the_last_frame_and_even_steps_between(tmp_path):
    path = film_strip({"walker-run": film(), "mw-reach": film(3)}, tmp_path / "strip.png", num_frames=5, height=40)
    image = np.asarray(Image.open(path))
    starts = [4 + column * (60 + 4) + 30 for column in range(5)]
    assert [int(image[44 + 20, x, 0]) for x in starts] == [0, 5, 10, 15, 20]
    second = 44 + 40 + 4 + 44 + 20
    assert [int(image[second, x, 0]) for x in starts[:4]] == [0, 1, 2, 255]


def test_video_has_every_frame_at_the_rate(tmp_path):
    path = save_video(film(5) * 10, tmp_path / "sub" / "a.gif", fps=20)
    with Image.open(path) as video:
        assert video.n_frames == 5 and video.info["duration"] == 50 and video.size == (30, 20)


@pytest.mark.parametrize(
    "frames", [np.zeros((4, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_frames_of_another_shape_or_type_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match=r"must be uint8 of shape \[T, H, W, 3\]"):
        film_strip({"a": frames}, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"must be uint8 of shape \[T, H, W, 3\]"):
        save_video(frames, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.gif or \.mp4"):
        save_video(film(), tmp_path / "a.avi")
    with pytest.raises(ValueError, match=r"use \.png"):
        film_strip({"a": film()}, tmp_path / "a.xyz")


@pytest.mark.parametrize(
    "module, call",
    [
        ("matplotlib.figure", lambda path: plot_scores(summary(["walker-run"]), path / "a.png")),
        ("PIL.Image", lambda path: film_strip({"a": film()}, path / "a.png")),
        ("imageio.v2", lambda path: save_video(film(), path / "a.gif")),
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
from torchrl_pwm.evaluation import evaluate_policy, make_summary, plot_scores, film_strip, save_video
heavy = {"matplotlib", "imageio", "PIL", "metaworld", "dm_control", "hydra"} & set(sys.modules)
assert not heavy, heavy
row = dict(task="walker-run", return_mean=1.0, return_std=0.0, success=None, score=0.1,
           behavior_return_mean=1.0, episodes=1, seconds_extraction=None)
plot_scores(make_summary([row], seed=0, seconds_total=1), sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
assert set(evaluation.__all__) == set(evaluation._HOME) and all(hasattr(evaluation, n) for n in evaluation.__all__)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True, timeout=120)


def test_pictures_of_a_film_are_its_frames_evenly_spaced_in_time():
    pictures = film_pictures(film(21) * 10, num_frames=5)
    assert [step for step, _ in pictures] == [0, 5, 10, 15, 20]
    for step, content in pictures:
        image = Image.open(io.BytesIO(content))
        assert image.format == "JPEG" and image.size == (30, 20)
        assert np.asarray(image).mean() == pytest.approx(10 * step, abs=2)
    assert [step for step, _ in film_pictures(film(3))] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"must be uint8 of shape"):
        film_pictures(np.zeros((4, 8, 8, 3)))
