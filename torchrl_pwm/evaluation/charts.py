"""Geometry of line charts in SVG: scales, ticks and paths, without a plotting library."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["Chart", "Curve", "line_chart", "mean_curve", "ticks"]

Series = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Args:
        label: what it shows, for its tooltip.
        style: CSS class.
        x: positions [n].
        y: values [n]; one that is not finite leaves a gap.
    """

    label: str
    style: str
    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart in the units of its SVG view box.

    Args:
        width: width of the view box.
        height: height of the view box.
        frame: left, top, right and bottom of the plotting area.
        x_ticks: position and label.
        y_ticks: position and label.
        paths: label, CSS class, SVG path and points of each curve.
        levels: label, CSS class and position of each level line.
    """

    width: int
    height: int
    frame: tuple[float, float, float, float]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    paths: list[tuple[str, str, str, list[tuple[float, float]]]]
    levels: list[tuple[str, str, float]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from at most ``low`` to at least ``high``.

    Examples:
        >>> ticks(0.0, 9.3)
        [0.0, 2.5, 5.0, 7.5, 10.0]
        >>> ticks(-0.13, 0.02)
        [-0.15, -0.1, -0.05, 0.0, 0.05]
    """
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next((factor * power for factor in (1.0, 2.0, 2.5, 5.0) if factor * power >= rough * 0.99), 10.0 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(number * step, digits) + 0.0 for number in range(first, last + 1)]


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


def line_chart(
    curves: Sequence[Curve],
    *,
    levels: Mapping[str, tuple[str, float]] | None = None,
    width: int = 480,
    height: int = 284,
    margin: tuple[float, float, float, float] = (58.0, 10.0, 10.0, 46.0),
) -> Chart:
    """Lays out curves over common axes.

    Args:
        curves: at least one, with at least one finite value.
        levels: label to CSS class and value of level lines.
        width: width of the view box.
        height: height of the view box.
        margin: space left, above, right and below of the plotting area.

    Raises:
        ValueError: if there is no finite value.
    """
    finite = [curve.y[np.isfinite(curve.y)] for curve in curves]
    values = np.concatenate([*finite, [value for _, value in (levels or {}).values()]]) if curves else np.empty(0)
    if not sum(map(len, finite)):
        raise ValueError("there is nothing to draw: no curve has a finite value")
    y_marks = ticks(float(values.min()), float(values.max()))
    x_all = np.concatenate([curve.x for curve in curves])
    x_marks = [mark for mark in ticks(float(x_all.min()), float(x_all.max())) if mark <= x_all.max()]
    left, top, right, bottom = margin[0], margin[1], width - margin[2], height - margin[3]
    x_span = float(max(x_all.max() - x_all.min(), 1e-12))
    y_span = y_marks[-1] - y_marks[0]

    def place(x: float, y: float) -> tuple[float, float]:
        horizontal = left + (x - x_all.min()) / x_span * (right - left)
        return round(float(horizontal), 1), round(bottom - (y - y_marks[0]) / y_span * (bottom - top), 1)

    paths = []
    for curve in curves:
        points = [place(x, y) if math.isfinite(y) else None for x, y in zip(curve.x.tolist(), curve.y.tolist())]
        paths.append((curve.label, curve.style, _path(points), [point for point in points if point is not None]))
    return Chart(
        width=width,
        height=height,
        frame=(left, top, right, bottom),
        x_ticks=[(place(mark, 0.0)[0], f"{mark:g}") for mark in x_marks if mark >= x_all.min()],
        y_ticks=[(place(0.0, mark)[1], f"{mark:g}") for mark in y_marks],
        paths=paths,
        levels=[(label, style, place(0.0, value)[1]) for label, (style, value) in (levels or {}).items()],
    )


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """An SVG path that is interrupted where a point is missing."""
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]:g} {point[1]:g}")
        pen = "L"
    return "".join(parts)
