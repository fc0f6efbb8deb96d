"""Why a smooth model: the ball and the wall, as in figure 2 of PWM (arXiv 2407.02466).

    python examples/ball_wall.py                    # half a minute on one core; writes docs/images/ball_wall.png
    python examples/ball_wall.py --seeds 10 --activation relu

A ball is thrown at an angle theta towards a wall; where it lands jumps where it just clears the wall. Two
small networks learn the landscape from 1000 samples: a plain one, and one that ends in SimNorm, which is smoother and
less exact. Gradient descent on each, from the far left, finds an angle; what counts is how far the *true* objective at
that angle is from the best (the optimality gap). Claim: the smoother model has the larger error and the smaller gap.

Found here: it holds in every seed with Mish, where descent goes on until it rests, and in 3 of 5 with ReLU, where the
plain model's kinks sometimes lead past the plateau. It does not hold for a descent of limited patience, because the
smooth model is next to level at the start, nor with LayerNorm, where that level start slopes the wrong way.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from torchrl_pwm import NormedLinear, SimNorm

GRAVITY, SPEED, WIND, TIME, WALL, HEIGHT = -9.81, 10.0, 1.0, 2.0, 5.0, 0.0
# float64: at the start the true slope is 20 sin(-pi), whose sign is lost in float32.
ANGLES = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)
MODELS = {"plain": "plain MLP", "simnorm": "MLP with SimNorm"}
COLORS = {"true": "#1b1f24", "plain": "#d1495b", "simnorm": "#2f6db3"}


def objective(theta: Tensor) -> Tensor:
    """J(theta) = -x(theta): minus the distance that the ball flies, or the wall's where it hits it; any shape."""
    cosine = theta.cos()
    at_wall = (-SPEED * cosine + (SPEED**2 * cosine.square() + WIND * WALL).sqrt()) / WIND
    height = SPEED * theta.sin() * at_wall + GRAVITY / 2 * at_wall.square()
    stopped = (height < HEIGHT) & (at_wall < TIME)
    return -torch.where(stopped, WALL, SPEED * cosine * TIME + WIND / 2 * TIME**2)


def make_model(kind: str, activation: type[nn.Module], layer_norm: bool) -> nn.Module:
    """An MLP 1-32-32-1; with SimNorm in place of its last activation. ``layer_norm`` puts LayerNorm before each."""

    def block(size: int, last: nn.Module) -> list[nn.Module]:
        return [NormedLinear(size, 32, last)] if layer_norm else [nn.Linear(size, 32), last]

    last = SimNorm(8) if kind == "simnorm" else activation()
    return nn.Sequential(*block(1, activation()), *block(32, last), nn.Linear(32, 1))


def fit(model: nn.Module, *, samples: int = 1000, epochs: int = 100, batch_size: int = 56, lr: float = 2e-3) -> None:
    """Regresses the model on evenly spaced samples of the objective."""
    theta = torch.linspace(-math.pi, math.pi, samples).unsqueeze(-1)
    target = objective(theta)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(epochs):
        for rows in torch.randperm(samples).split(batch_size):
            loss = (model(theta[rows]) - target[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def descend(function: Callable[[Tensor], Tensor]) -> float:
    """Where descent from -pi comes to rest: downhill in steps of 2 pi / 20,000 until the slope no longer falls.

    Equal small steps, because the first slope of a smooth model is next to nothing: how far plain gradient descent
    comes from there is a matter of its learning rate and patience (see :func:`plain_descent`).
    """
    theta = ANGLES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(theta).sum(), theta)
    rests = (slope >= 0).nonzero()
    return ANGLES[rests[0] if len(rests) else -1].item()


def plain_descent(function: Callable[[Tensor], Tensor], *, lr: float = 0.01, steps: int = 2000) -> float:
    """Where that many steps of gradient descent from -pi lead."""
    theta = torch.tensor([-math.pi], dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(function(theta).sum(), theta)
        theta = (theta - lr * slope).detach().clamp(-math.pi, math.pi).requires_grad_()
    return theta.item()


@dataclass(frozen=True)
class Outcome:
    """What one model of one seed is worth."""

    landscape: Tensor
    error: float
    reached: float
    gap: float
    plain_gap: float


def gap(theta: float) -> float:
    """|J(theta*) - J(theta)|, with J the true objective."""
    return abs(objective(ANGLES).min() - objective(torch.tensor(theta, dtype=torch.float64))).item()


def run(kind: str, seed: int, activation: type[nn.Module], layer_norm: bool) -> Outcome:
    """Trains a model and descends it."""
    torch.manual_seed(seed)
    model = make_model(kind, activation, layer_norm)
    fit(model)
    model.double()

    def learned(theta: Tensor) -> Tensor:
        return model(theta.unsqueeze(-1)).squeeze(-1)

    with torch.no_grad():
        landscape = learned(ANGLES)
    error = (landscape - objective(ANGLES)).square().mean().sqrt().item()
    reached = descend(learned)
    return Outcome(landscape, error, reached, gap(reached), gap(plain_descent(learned)))


def draw(outcomes: dict[str, list[Outcome]], path: Path) -> None:
    """The landscapes with the points reached, and error and gap of every seed."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained", dpi=120)
    left, middle, right = figure.subplots(1, 3, width_ratios=(3.2, 1, 1))
    true = objective(ANGLES)
    left.plot(ANGLES, true, color=COLORS["true"], lw=1.6, label="true objective")
    rest = descend(objective)
    marker = {"ls": "", "ms": 8, "mec": "white", "zorder": 5}
    left.plot(rest, objective(torch.tensor(rest)), marker="o", color=COLORS["true"], **marker)
    for kind, name in MODELS.items():
        for number, result in enumerate(outcomes[kind]):
            faint = {"alpha": 1.0, "lw": 2.0, "label": name} if number == 0 else {"alpha": 0.25, "lw": 1.0}
            left.plot(ANGLES, result.landscape, color=COLORS[kind], **faint)
            place = torch.tensor(result.reached, dtype=torch.float64)
            left.plot(place, objective(place), marker="o", color=COLORS[kind], **marker)
    left.plot(-math.pi, objective(torch.tensor(-math.pi)), marker="s", color="#8a8f98", label="start", **marker)
    best = ANGLES[true.argmin()]
    left.plot(best, true.min(), marker="*", color="#e0a030", **{**marker, "ms": 15}, label="best angle")
    left.set(
        xlabel="throwing angle theta", ylabel="J(theta), to be minimised", title="landscapes; dots: where descent rests"
    )
    left.legend(frameon=False, fontsize=9, loc="upper center")
    for axes, field, title in ((middle, "error", "RMS error of the model"), (right, "gap", "optimality gap")):
        for place, kind in enumerate(MODELS):
            values = [getattr(result, field) for result in outcomes[kind]]
            axes.bar(place, sum(values) / len(values), color=COLORS[kind], alpha=0.35, width=0.7)
            spread = [place + 0.3 * (i / max(len(values) - 1, 1) - 0.5) for i in range(len(values))]
            axes.plot(spread, values, "o", color=COLORS[kind], ms=4.5)
        axes.set_xticks(range(len(MODELS)), ["plain", "SimNorm"])
        axes.set_title(title)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def report(outcomes: dict[str, list[Outcome]]) -> str:
    """Numbers of every seed, and whether the claim holds."""
    lines = [f"{'model':18}{'seed':>5}{'RMS error':>11}{'theta':>9}{'gap':>8}{'gap, plain descent':>20}"]
    for kind, name in MODELS.items():
        for seed, result in enumerate(outcomes[kind]):
            numbers = f"{result.error:11.2f}{result.reached:9.3f}{result.gap:8.2f}{result.plain_gap:20.2f}"
            lines.append(f"{name:18}{seed:5}{numbers}")
    lines.append(f"on the true objective descent rests at {descend(objective):.3f}, gap {gap(descend(objective)):.2f}")
    pairs = list(zip(outcomes["plain"], outcomes["simnorm"]))
    for field, how in (("gap", "until it rests"), ("plain_gap", "for 2000 plain steps")):
        holds = sum(
            simnorm.error > plain.error and getattr(simnorm, field) < getattr(plain, field) for plain, simnorm in pairs
        )
        verdict = "holds" if holds == len(pairs) else "does not hold in all seeds" if holds else "does not hold"
        lines.append(
            f"descent {how}: larger error and smaller gap with SimNorm in {holds} of {len(pairs)} seeds; the claim "
            f"{verdict}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    picture = Path(__file__).parents[1] / "docs" / "images" / "ball_wall.png"
    parser.add_argument("--seeds", type=int, default=5, help="models of each kind (default: 5)")
    parser.add_argument("--activation", choices=("mish", "relu"), default="mish")
    parser.add_argument("--layer-norm", action="store_true", help="LayerNorm before each activation, and SimNorm")
    parser.add_argument("--picture", type=Path, default=picture, help=f"file to write (default: {picture.name})")
    options = parser.parse_args(arguments)
    activation = {"mish": nn.Mish, "relu": nn.ReLU}[options.activation]
    outcomes = {
        kind: [run(kind, seed, activation, options.layer_norm) for seed in range(options.seeds)] for kind in MODELS
    }
    print(report(outcomes))
    draw(outcomes, options.picture)
    print(options.picture)


if __name__ == "__main__":
    main()
