"""Film strips and pictures of recorded episodes."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from torchrl_pwm.evaluation import (
    film_pictures,
    film_strip,
)
from torchrl_pwm.evaluation.video import film_steps


def film(steps=21, height=20, width=30):
    return np.broadcast_to(np.arange(steps, dtype=np.uint8)[:, None, None, None], (steps, height, width, 3)).copy()


def test_film_strip_shows_the_first_and_the_last_frame_and_even_steps_between(tmp_path):
    path = film_strip({"walker-run": film(), "mw-reach": film(3)}, tmp_path / "strip.png", num_frames=5, height=40)
    image = np.asarray(Image.open(path))
    starts = [4 + column * (60 + 4) + 30 for column in range(5)]
    assert [int(image[44 + 20, x, 0]) for x in starts] == [0, 5, 10, 15, 20]
    second = 44 + 40 + 4 + 44 + 20
    assert [int(image[second, x, 0]) for x in starts[:4]] == [0, 1, 2, 255]


@pytest.mark.parametrize(
    "frames", [np.zeros((4, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_frames_of_another_shape_or_type_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match=r"must be uint8 of shape \[T, H, W, 3\]"):
        film_strip({"a": frames}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"use \.png"):
        film_strip({"a": film()}, tmp_path / "a.xyz")


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


def test_missing_extra_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r'pip install "torchrl-pwm\[plots\]"'):
        film_strip({"a": film()}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_film_of_chosen_steps_is_that_of_the_whole_episode(tmp_path):
    whole = film(251)
    steps = film_steps(251)
    assert film_pictures(whole[steps], steps=steps) == film_pictures(whole)
    film_strip({"walker-run": whole}, tmp_path / "whole.png")
    film_strip({"walker-run": whole[steps]}, tmp_path / "chosen.png", steps={"walker-run": steps})
    assert (tmp_path / "chosen.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
