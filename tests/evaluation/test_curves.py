"""Metrics from files, and their picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from torchrl_pwm import DamagedFileError
from torchrl_pwm.evaluation import (
    plot_training,
    read_metrics,
)


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


@pytest.mark.parametrize("content", [b"\xff\xfe\x00step", b"step,a\n1,x\n", b"step,a\n1," + b'"' * 3 + b"9" * 200_000])
def test_a_table_that_is_damaged_is_refused_by_name(content, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"metrics\.csv"):
        read_metrics(tmp_path / "metrics.csv")
