"""The teaching figure of the ball and the wall."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).parents[2] / "examples" / "ball_wall.py"


@pytest.fixture(scope="module")
def ball():
    spec = importlib.util.spec_from_file_location("ball_wall_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_objective_has_the_known_values(ball):
    theta = torch.tensor([-math.pi, 0.0, math.pi / 2, math.pi], dtype=torch.float64)
    # thrown backwards; into the wall; straight up, so that the wind alone carries it; backwards
    assert ball.objective(theta).tolist() == pytest.approx([18.0, -5.0, -2.0, 18.0], abs=1e-9)


def test_the_best_angle_just_clears_the_wall(ball):
    best = ball.ANGLES[ball.objective(ball.ANGLES).argmin()]
    just_below = ball.objective(best - 2 * math.pi / 20_000)
    assert (ball.objective(best).item(), just_below.item()) == pytest.approx((-21.85, -5.0), abs=0.01)
    assert ball.gap(best.item()) == 0.0


def test_descent_rests_in_a_minimum_and_on_the_plateau_of_the_true_objective(ball):
    assert ball.descend(lambda theta: (theta - 0.7).square()) == pytest.approx(0.7, abs=1e-3)
    assert ball.descend(lambda theta: -theta) == pytest.approx(math.pi)
    assert ball.plain_descent(lambda theta: (theta - 0.7).square()) == pytest.approx(0.7, abs=1e-3)
    # J leaves 20 cos theta + 2 where the ball reaches the wall in time: cos theta = 1 / 40
    assert ball.descend(ball.objective) == pytest.approx(-math.acos(1 / 40), abs=1e-3)


def test_the_script_draws_the_figure_and_says_whether_the_claim_holds(ball, tmp_path, capsys):
    ball.main(["--seeds", "1", "--picture", str(tmp_path / "figure.png")])
    out = capsys.readouterr().out
    assert "smaller gap with SimNorm in 1 of 1 seeds; the claim holds" in out
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
