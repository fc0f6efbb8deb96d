"""Film strips of recorded episodes."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from torchrl_pwm._utils.extras import require
from torchrl_pwm._utils.files import picture_path, replaced_file

__all__ = ["Film", "FilmStrip", "film_pictures", "film_steps", "film_strip"]

_GAP, _HEADER, _LABEL_SIZE = 4, 22, 15
_INK, _PAPER = (27, 31, 36), (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class FilmStrip:
    """Pictures of one episode.

    Args:
        pictures: number of the step and JPEG file of each.
        caption: which episode it is.
    """

    pictures: Sequence[tuple[int, bytes]]
    caption: str


Film = FilmStrip  # another name of it


def film_strip(
    films: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    num_frames: int = 8,
    height: int = 160,
    steps: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """One row of pictures per episode, evenly spaced in time from the first frame to the last.

    Above each row stand its label and, over each picture, the number of its step.

    Args:
        films: label of a row (a task, perhaps with its score) to frames, uint8 [T, H, W, 3]: for example one of
            ``result.frames`` of :func:`~torchrl_pwm.evaluate_policy` with ``record=1``.
        path: file to write; the suffix chooses the format (PNG if it has none).
        num_frames: pictures per row; an episode of fewer frames shows all it has.
        height: height of each picture in the strip, in pixels.
        steps: by label, the numbers of the steps that the frames are of, where not all were recorded.

    Returns:
        The path of the strip.

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: if there is no episode, or frames of another shape or dtype.

    Examples:
        >>> import numpy as np, tempfile
        >>> frames = np.zeros((50, 64, 64, 3), np.uint8)
        >>> film_strip({"walker-run": frames}, tempfile.mkdtemp() + "/strip.png").name
        'strip.png'
    """
    if not films:
        raise ValueError("there is nothing to draw: no episode was given")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, found {num_frames}")
    image_module = require("PIL.Image", extra="plots", purpose="drawing a film strip")
    draw_module = require("PIL.ImageDraw", extra="plots", purpose="drawing a film strip")
    font_module = require("PIL.ImageFont", extra="plots", purpose="drawing a film strip")
    font = font_module.load_default(_LABEL_SIZE)
    small = font_module.load_default(_LABEL_SIZE - 4)

    rows = []
    for label, frames in films.items():
        frames = _checked(frames, label)
        shown = film_steps(len(frames), num_frames)
        width = max(1, round(height * frames.shape[2] / frames.shape[1]))
        pictures = [image_module.fromarray(frames[number]).resize((width, height)) for number in shown]
        rows.append((label, _numbers(shown, None if steps is None else steps.get(label)), pictures, width))

    # a label that is wider than its pictures still fits
    total = max(
        max(len(numbers) * (width + _GAP) + _GAP, int(font.getlength(label)) + 2 * _GAP)
        for label, numbers, _, width in rows
    )
    row_height = 2 * _HEADER + height + _GAP
    strip = image_module.new("RGB", (total, len(rows) * row_height + _GAP), _PAPER)
    draw = draw_module.Draw(strip)
    for row, (label, numbers, pictures, width) in enumerate(rows):
        top = row * row_height
        draw.text((_GAP, top + _HEADER // 2 + 2), label, fill=_INK, font=font, anchor="lm")
        for column, (step, picture) in enumerate(zip(numbers, pictures)):
            left = _GAP + column * (width + _GAP)
            draw.text((left, top + _HEADER + _HEADER // 2), f"step {step}", fill=_INK, font=small, anchor="lm")
            strip.paste(picture, (left, top + 2 * _HEADER))
    target = picture_path(path)
    formats = image_module.registered_extensions()
    if target.suffix.lower() not in formats:
        raise ValueError(f"Pillow cannot write {target.suffix} files (path {target}); use .png or .jpg")
    with replaced_file(target) as temporary:
        strip.save(temporary, format=formats[target.suffix.lower()])
    return target


def film_pictures(
    frames: np.ndarray, *, num_frames: int = 8, steps: Sequence[int] | None = None
) -> list[tuple[int, bytes]]:
    """Frames evenly spaced in time, from the first to the last, as JPEG files.

    Args:
        frames: uint8 [T, H, W, 3].
        num_frames: number of pictures; an episode of fewer frames gives all it has.
        steps: numbers of the steps that the frames are of, where not all were recorded.

    Returns:
        Number of the step and content of the file of each picture.

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: for frames of another shape or dtype.

    Examples:
        >>> import numpy as np
        >>> [step for step, _ in film_pictures(np.zeros((101, 8, 8, 3), np.uint8), num_frames=5)]
        [0, 25, 50, 75, 100]
    """
    image_module = require("PIL.Image", extra="plots", purpose="drawing a film strip")
    frames = _checked(frames, "the episode")
    pictures, shown = [], film_steps(len(frames), num_frames)
    for number, step in zip(shown, _numbers(shown, steps)):
        buffer = io.BytesIO()
        image_module.fromarray(frames[number]).save(buffer, format="JPEG", quality=85)
        pictures.append((step, buffer.getvalue()))
    return pictures


def film_steps(length: int, num_frames: int = 8) -> list[int]:
    """Numbers of the frames that a film strip shows of an episode of ``length`` frames, from the first to the last.

    Examples:
        >>> film_steps(501, 5)
        [0, 125, 250, 375, 500]
    """
    return [int(step) for step in np.unique(np.linspace(0, length - 1, num_frames).round())]


def _numbers(shown: list[int], steps: Sequence[int] | None) -> list[int]:
    return shown if steps is None else [steps[number] for number in shown]


def _checked(frames: np.ndarray, label: str) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(
            f"frames of {label} must be uint8 of shape [T, H, W, 3], found {frames.dtype} {list(frames.shape)}"
        )
    return frames
