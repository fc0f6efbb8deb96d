"""Learning curves: metrics read from CSV files, and their picture."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from torchrl_pwm._utils.errors import DamagedFileError, first_line
from torchrl_pwm.evaluation.plots import COLORS, new_figure, save_figure, tidy_axes

__all__ = ["plot_training", "read_metrics"]

Series: TypeAlias = tuple[np.ndarray, np.ndarray]
_PANELS: Mapping[str, Sequence[str]] = {"return of an episode": ("predicted_return", "real_return")}


def plot_training(
    metrics: Mapping[str, Series] | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    panels: Mapping[str, Sequence[str]] = _PANELS,
    references: Mapping[str, float] | None = None,
    xlabel: str = "iteration",
    title: str | None = None,
) -> Path:
    """Curves of a training: by default the return that the world model predicts beside the real one.

    A predicted return that climbs while the real one does not is the sign of a policy that exploits errors of the
    world model.

    Args:
        metrics: name to (x [n], y [n]), or a file or folder for :func:`read_metrics`.
        path: file to write; the suffix chooses the format (PNG if it has none).
        panels: label of each panel's vertical axis, and the metrics it shows. Metrics that were never logged are
            left out; a value that is not finite leaves a gap.
        references: named values drawn as level lines in the first panel, such as the mean return of the data.
        xlabel: label of the horizontal axis.
        title: first line of the picture.

    Returns:
        The path of the picture.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if none of the metrics was logged, with those that were.
    """
    series = metrics if isinstance(metrics, Mapping) else read_metrics(metrics)
    shown = {label: [name for name in names if name in series] for label, names in panels.items()}
    shown = {label: names for label, names in shown.items() if names}
    if not shown:
        wanted = sorted({name for names in panels.values() for name in names})
        raise ValueError(f"none of the metrics {wanted} was logged; there are {sorted(series)}. Pass panels=...")
    figure = new_figure(8.0, 0.8 + 2.8 * len(shown))
    grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for position, (axes, (label, names)) in enumerate(zip(grid, shown.items())):
        for color, name in zip(itertools.cycle(COLORS), names):
            x, y = series[name]
            sparse = len(x) <= 40
            axes.plot(x, y, color=color, lw=1.8, marker="o" if sparse else None, ms=3.5, label=name.replace("_", " "))
        if position == 0:
            for style, (name, value) in zip(itertools.cycle(("--", ":", "-.")), (references or {}).items()):
                axes.axhline(value, color=COLORS[-1], lw=1.3, ls=style, label=name)
        axes.set_ylabel(label)
        axes.margins(x=0.02)
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        tidy_axes(axes, grid="both")
    grid[-1].set_xlabel(xlabel)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    return save_figure(figure, path)


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Series]:
    """Metrics logged to CSV files.

    Args:
        path: a CSV file with a header, whose first column is the step (empty cells are skipped), or a folder
            of TorchRL's :class:`~torchrl.record.CSVLogger`: one headless ``step,value`` file per metric, anywhere
            below the folder.

    Returns:
        Name to (steps [n], values [n]), float64, in the order of the file.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        DamagedFileError: if a file is no text, or a cell is not a number.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_table(path)
    series = {}
    for file in sorted(path.rglob("scalars/**/*.csv")):
        with _cells(file) as lines:
            rows = [[_number(cell, file) for cell in row[:2]] for row in csv.reader(lines) if len(row) >= 2]
        name = file.relative_to(next(p for p in file.parents if p.name == "scalars")).with_suffix("").as_posix()
        series[name] = (np.array([row[0] for row in rows]), np.array([row[1] for row in rows]))
    if not series:
        raise FileNotFoundError(f"no metrics under {path}: expected scalars/*.csv as TorchRL's CSVLogger writes them")
    return series


def _read_table(file: Path) -> dict[str, Series]:
    with _cells(file) as lines:
        reader = csv.DictReader(lines)
        step, *names = reader.fieldnames or [""]
        points: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for row in reader:
            for name in names:
                if row[name] not in (None, ""):
                    points[name].append((_number(row[step], file), _number(row[name], file)))
    return {name: (np.array([x for x, _ in xy]), np.array([y for _, y in xy])) for name, xy in points.items() if xy}


@contextlib.contextmanager
def _cells(file: Path) -> Iterator[Iterator[str]]:
    """The lines of a file; whatever is raised for text that is none, or no table, is an error of the file."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            yield stream
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedFileError(
            f"{file} is no file of metrics, or damaged: expected a table of numbers ({first_line(error)}); name another"
        ) from error


def _number(cell: str, file: Path) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise DamagedFileError(
            f"{file} holds {cell[:40]!r} where a number was expected; is it a file of metrics?"
        ) from error


def mean_curve(runs: Sequence[Series]) -> Series:
    """Mean over runs at the positions that all of them have.

    Args:
        runs: positions [n] and values [n] of each run.

    Examples:
        >>> import numpy as np
        >>> mean_curve([(np.array([0, 1, 2]), np.array([1.0, 3.0, 4.0])), (np.array([0, 1]), np.array([3.0, 3.0]))])
        (array([0, 1]), array([2., 3.]))
    """
    common = runs[0][0]
    for x, _ in runs[1:]:
        common = np.intersect1d(common, x)
    return common, np.mean([y[np.searchsorted(x, common)] for x, y in runs], axis=0)
