"""A linear-quadratic world model, whose return and gradient are known in closed form (float64).

z' = a z + b u,   r = -(q z^2 + c u^2),   u = tanh(theta z + sigma eps)   or, detached,   u = tanh(theta sg[z] + ...)
"""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_pwm import FirstOrderLoss, PWMLoss, PWMWorldModel

A, B, Q, C, THETA, SIGMA, GAMMA, WEIGHT = 0.9, 0.7, 0.5, 0.1, -0.6, 0.3, 0.95, -1.3
HORIZON, ROWS = 5, 4


class LinearQuadratic(nn.Module):
    """The tensor forms of a world model, nothing more."""

    num_tasks = 0

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(A, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(B, dtype=torch.float64))

    def encode_observation(self, observation: Tensor, task: Tensor | None = None) -> Tensor:
        return observation

    def next_latent(self, latent: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        return self.a * latent + self.b * action

    def reward_logits(self, latent: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        return -(Q * latent.square() + C * action.square())

    def decode_reward(self, logits: Tensor, space: str = "raw") -> Tensor:
        return logits


class LinearQuadraticSubclass(PWMWorldModel):
    """The same dynamics by overriding a PWMWorldModel."""

    def __init__(self) -> None:
        super().__init__(1, 1, latent_dim=8, units=(8,))

    encode_observation = LinearQuadratic.encode_observation
    reward_logits = LinearQuadratic.reward_logits

    def next_latent(self, latent: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor:
        return A * latent + B * action


class Policy(nn.Module):
    def __init__(self, theta: float = THETA) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        return self.theta * latent, torch.full_like(latent, SIGMA)


def make_loss(model: nn.Module, theta: float = THETA, **options) -> PWMLoss:
    actor = ProbabilisticActor(
        TensorDictModule(Policy(theta), ["latent"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    value = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(value.weight, WEIGHT)
    critic = TensorDictModule(value, ["latent"], ["state_value"])
    loss = PWMLoss(actor, critic, model, horizon=HORIZON, normalize_returns=False, **options)
    return loss.make_value_estimator("TDLambda", gamma=GAMMA, lmbda=0.9)


def data() -> tuple[TensorDict, Tensor]:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(HORIZON, ROWS, 1, generator=generator, dtype=torch.float64)
    return TensorDict({"observation": start}, [ROWS]), noise


def closed_form(theta: float, detach: bool, closing: float) -> tuple[float, float]:
    """Loss and its gradient by hand: the recursion of z, u and their derivatives in theta, row by row.

    With the latent detached at the actor, du/dtheta = (1 - u^2) z; without, (1 - u^2) (z + theta dz/dtheta).
    """
    start, noise = data()
    total = slope = 0.0
    for row in range(ROWS):
        z, dz = float(start["observation"][row]), 0.0
        for k in range(HORIZON):
            u = math.tanh(theta * z + SIGMA * float(noise[k, row]))
            du = (1 - u * u) * (z + (0.0 if detach else theta * dz))
            total += GAMMA**k * (Q * z * z + C * u * u)
            slope += GAMMA**k * (2 * Q * z * dz + 2 * C * u * du)
            z, dz = A * z + B * u, A * dz + B * du
        total -= closing * WEIGHT * z
        slope -= closing * WEIGHT * dz
    return total / (ROWS * HORIZON), slope / (ROWS * HORIZON)


@pytest.mark.parametrize("model", [LinearQuadratic, LinearQuadraticSubclass])
@pytest.mark.parametrize("bootstrap", ["standard", "reference"])
@pytest.mark.parametrize("detach", [True, False])
def test_actor_gradient_is_the_analytic_one(model: type[nn.Module], bootstrap: str, detach: bool) -> None:
    loss = make_loss(model(), bootstrap=bootstrap, detach_latent=detach)
    start, noise = data()
    found = loss.actor_loss(loss.imagine(start, noise))
    found.backward()
    gradient = next(loss.actor_network_params.parameters()).grad
    expected, slope = closed_form(THETA, detach, GAMMA ** (HORIZON + (bootstrap == "reference")))
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert float(gradient) == pytest.approx(slope, abs=1e-6)


def test_attached_gradient_is_the_central_difference_and_the_detached_one_is_not() -> None:
    start, noise = data()
    width = 1e-5

    def value(theta: float) -> float:
        loss = make_loss(LinearQuadratic(), theta)
        return float(loss.actor_loss(loss.imagine(start, noise)))

    difference = (value(THETA + width) - value(THETA - width)) / (2 * width)
    gradients = {}
    for detach in (True, False):
        loss = make_loss(LinearQuadratic(), detach_latent=detach)
        loss.actor_loss(loss.imagine(start, noise)).backward()
        gradients[detach] = float(next(loss.actor_network_params.parameters()).grad)
    assert gradients[False] == pytest.approx(difference, abs=1e-6)
    assert abs(gradients[True] - difference) > 1e-3


def rollout(done: list[bool], terminated: list[bool]) -> tuple[FirstOrderLoss, TensorDict]:
    """One row of three steps with rewards 1, 10, 100 and values 0.1, 0.2, 0.3 of the next states."""
    source = make_loss(LinearQuadratic())
    loss = FirstOrderLoss(source.actor_network, source.value_network, normalize_returns=False)
    loss.make_value_estimator("TDLambda", gamma=0.5, lmbda=0.5)
    column = [1, 3, 1]
    values = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(column)
    step = {
        "latent": values / WEIGHT,
        "reward": torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64).view(column).requires_grad_(),
        "done": torch.tensor(done).view(column),
        "terminated": torch.tensor(terminated).view(column),
    }
    return loss, TensorDict({"latent": torch.zeros(column).double(), "next": TensorDict(step, [1, 3])}, [1, 3])


F, T = False, True


@pytest.mark.parametrize(
    ("bootstrap", "done", "terminated", "expected", "weights"),
    [
        # 1 + 10/2 + 100/4, closed by 0.3/8
        ("standard", [F, F, F], [F, F, F], 31.0375, [1, 0.5, 0.25]),
        ("reference", [F, F, F], [F, F, F], 31.0 + 0.3 / 16, [1, 0.5, 0.25]),
        # the row ends after its second step: (1 + 10/2 + 0.2/4) + (100 + 0.3/2)
        ("standard", [F, T, F], [F, F, F], 6.05 + 100.15, [1, 0.5, 1]),
        ("reference", [F, T, F], [F, F, F], 6.05 + 100 + 0.3 / 4, [1, 0.5, 1]),
        # terminated: nothing comes after
        ("standard", [F, T, F], [F, T, F], 6.0 + 100.15, [1, 0.5, 1]),
        ("standard", [F, F, T], [F, F, T], 31.0, [1, 0.5, 0.25]),
        ("standard", [F, F, T], [F, F, F], 31.0375, [1, 0.5, 0.25]),
        # published code forgets the rewards of a row that ends exactly at the last step
        ("reference", [F, F, T], [F, F, F], 0.3 / 2, [0, 0, 0]),
        ("reference", [F, T, T], [F, F, F], 6.05 + 0.3 / 2, [1, 0.5, 0]),
    ],
)
def test_return_of_rows_that_end_has_the_known_value(bootstrap, done, terminated, expected, weights) -> None:
    loss, td = rollout(done, terminated)
    loss.bootstrap = bootstrap
    found = loss.actor_loss(td)
    assert float(found) * 3 == pytest.approx(-expected, abs=1e-9)
    found.backward()
    gradient = td["next", "reward"].grad.flatten() * -3
    assert gradient.tolist() == pytest.approx(weights)


@pytest.mark.parametrize(
    ("done", "terminated", "expected"),
    [
        # G_2 = 100 + 0.3/2; G_1 = 10 + (0.2 + G_2)/4; G_0 = 1 + (0.1 + G_1)/4
        ([F, F, F], [F, F, F], [1 + (0.1 + 10 + (0.2 + 100.15) / 4) / 4, 10 + (0.2 + 100.15) / 4, 100.15]),
        ([F, T, F], [F, F, F], [1 + (0.1 + 10.1) / 4, 10.1, 100.15]),
        ([F, T, F], [F, T, F], [1 + (0.1 + 10.0) / 4, 10.0, 100.15]),
        ([F, F, T], [F, F, T], [1 + (0.1 + 10 + (0.2 + 100) / 4) / 4, 10 + (0.2 + 100) / 4, 100.0]),
    ],
)
def test_value_target_of_rows_that_end_has_the_known_value(done, terminated, expected) -> None:
    loss, td = rollout(done, terminated)
    assert loss.value_target(td).flatten().tolist() == pytest.approx(expected, abs=1e-6)
