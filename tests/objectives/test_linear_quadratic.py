"""A linear-quadratic world model, whose return and gradient are known analytically (float64).

z' = a z + b u,   r = -(q z^2 + c u^2),   v(z) = w z,

with u = theta z (geometric series) or u = tanh(theta z + sigma eps) (a recursion); detached, theta multiplies sg[z].
"""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import Delta, ProbabilisticActor, TanhNormal

from torchrl_pwm import FirstOrderLoss, PWMLoss, PWMWorldModel

A, B, Q, C, THETA, SIGMA, GAMMA, WEIGHT = 0.9, 0.7, 0.5, 0.1, -0.6, 0.3, 0.95, -1.3
HORIZON, ENVS = 5, 4


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


class LinearPolicy(Policy):
    """u = theta z, with certainty."""

    def forward(self, latent: Tensor) -> Tensor:
        return self.theta * latent


def make_loss(
    model: nn.Module, theta: float = THETA, *, linear: bool = False, normalize_returns: bool = False, **options
) -> PWMLoss:
    params = ["param"] if linear else ["loc", "scale"]
    actor = ProbabilisticActor(
        TensorDictModule((LinearPolicy if linear else Policy)(theta), ["latent"], params),
        in_keys=params,
        distribution_class=Delta if linear else TanhNormal,
    )
    value = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(value.weight, WEIGHT)
    critic = TensorDictModule(value, ["latent"], ["state_value"])
    loss = PWMLoss(actor, critic, model, horizon=HORIZON, normalize_returns=normalize_returns, **options)
    return loss.make_value_estimator("TDLambda", gamma=GAMMA, lmbda=0.9)


def data() -> tuple[TensorDict, Tensor]:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(ENVS, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(HORIZON, ENVS, 1, generator=generator, dtype=torch.float64)
    return TensorDict({"observation": start}, [ENVS]), noise


def geometric(theta: float, detach: bool, closing: float) -> tuple[float, float]:
    """Loss and gradient of u = theta z analytically, with s = a + b theta: z_k = s^k z_0 and so

    return = -(q + c theta^2) z_0^2 sum_k (g s^2)^k + closing w s^H z_0,   dz_k/dtheta = k b s^(k-1) z_0

    or, detached, dz_k/dtheta = b sum_{j<k} a^(k-1-j) s^j z_0 = (s^k - a^k) z_0 / theta.
    """
    start = data()[0]["observation"]
    s, q = A + B * theta, Q + C * theta**2
    ratio = GAMMA * s * s
    total = q * start.square() * (1 - ratio**HORIZON) / (1 - ratio) - closing * WEIGHT * s**HORIZON * start

    def dz(k: int) -> float:
        return (s**k - A**k) / theta if detach else k * B * s ** (k - 1)

    slope = torch.zeros_like(start)
    for k in range(HORIZON):
        du = s**k + (0.0 if detach else theta * dz(k))
        slope += GAMMA**k * 2 * (Q * s**k * dz(k) + C * theta * s**k * du) * start.square()
    slope -= closing * WEIGHT * dz(HORIZON) * start
    return total.mean().item() / HORIZON, slope.mean().item() / HORIZON


def analytic(theta: float, detach: bool, closing: float) -> tuple[float, float]:
    """Loss and its gradient by hand: the recursion of z, u and their derivatives in theta, row by row.

    With the latent detached at the actor, du/dtheta = (1 - u^2) z; without, (1 - u^2) (z + theta dz/dtheta).
    """
    start, noise = data()
    total = slope = 0.0
    for row in range(ENVS):
        z, dz = float(start["observation"][row]), 0.0
        for k in range(HORIZON):
            u = math.tanh(theta * z + SIGMA * float(noise[k, row]))
            du = (1 - u * u) * (z + (0.0 if detach else theta * dz))
            total += GAMMA**k * (Q * z * z + C * u * u)
            slope += GAMMA**k * (2 * Q * z * dz + 2 * C * u * du)
            z, dz = A * z + B * u, A * dz + B * du
        total -= closing * WEIGHT * z
        slope -= closing * WEIGHT * dz
    return total / (ENVS * HORIZON), slope / (ENVS * HORIZON)


MODELS = pytest.mark.parametrize("model", [LinearQuadratic, LinearQuadraticSubclass])
BOOTSTRAPS = pytest.mark.parametrize("bootstrap", ["standard", "reference"])
DETACH = pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
LINEAR = pytest.mark.parametrize("linear", [True, False], ids=["linear", "tanh"])


def loss_and_gradient(loss: PWMLoss, noise: Tensor | None) -> tuple[float, float]:
    result = loss.actor_loss(loss.imagine(data()[0], noise))
    result.backward()
    return result.item(), next(loss.actor_network_params.parameters()).grad.item()


@MODELS
@BOOTSTRAPS
@DETACH
@LINEAR
def test_actor_gradient_is_the_analytic_one(model: type[nn.Module], bootstrap: str, detach: bool, linear: bool) -> None:
    loss = make_loss(model(), linear=linear, bootstrap=bootstrap, detach_latent=detach)
    result = loss_and_gradient(loss, None if linear else data()[1])
    closing = GAMMA ** (HORIZON + (bootstrap == "reference"))
    expected = (geometric if linear else analytic)(THETA, detach, closing)
    assert result == pytest.approx(expected, rel=0, abs=1e-9)


@MODELS
@BOOTSTRAPS
@LINEAR
def test_attached_gradient_is_the_central_difference_and_the_detached_one_is_not(
    model: type[nn.Module], bootstrap: str, linear: bool
) -> None:
    noise, width = None if linear else data()[1], 1e-5
    options = {"linear": linear, "bootstrap": bootstrap}
    up, down = (loss_and_gradient(make_loss(model(), THETA + d, **options), noise)[0] for d in (width, -width))
    difference = (up - down) / (2 * width)
    _, attached = loss_and_gradient(make_loss(model(), detach_latent=False, **options), noise)
    _, detached = loss_and_gradient(make_loss(model(), detach_latent=True, **options), noise)
    assert attached == pytest.approx(difference, rel=0, abs=1e-6)
    assert abs(detached - difference) > 1e-3


def test_normalised_gradient_is_the_analytic_one_over_the_spread_of_the_returns() -> None:
    start, noise = data()
    each = make_loss(LinearQuadratic(), reduction="none").eval()
    returns = each.actor_loss(each.imagine(start, noise)) * HORIZON
    # running variance: mean 0, variance 1 and a weight of 1e-4 before the first batch
    weight, total = 1e-4, 1e-4 + ENVS
    moment = weight + returns.var(correction=0) * ENVS + returns.mean() ** 2 * weight * ENVS / total
    scale = (moment / total + 1e-5).sqrt().item()
    _, slope = analytic(THETA, True, GAMMA**HORIZON)
    _, gradient = loss_and_gradient(make_loss(LinearQuadratic(), normalize_returns=True), noise)
    assert gradient == pytest.approx(slope * HORIZON / scale, rel=1e-6)


def test_policy_and_model_keep_their_gradients_apart() -> None:
    model = LinearQuadratic()
    loss_and_gradient(make_loss(model), data()[1])
    assert model.a.grad is None and model.b.grad is None


def rollout(done: list[bool], terminated: list[bool]) -> tuple[FirstOrderLoss, TensorDict]:
    """One row of three steps with rewards 1, 10, 100 and values 0.1, 0.2, 0.3 of the next states."""
    source = make_loss(LinearQuadratic())
    loss = FirstOrderLoss(source.actor_network, source.value_network, normalize_returns=False)
    loss.make_value_estimator("TDLambda", gamma=0.5, lmbda=0.5)
    column = [1, 3, 1]
    values = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(column)
    step = {
        "latent": (values / WEIGHT).requires_grad_(),
        "reward": torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64).view(column).requires_grad_(),
        "done": torch.tensor(done).view(column),
        "terminated": torch.tensor(terminated).view(column),
    }
    return loss, TensorDict({"latent": torch.zeros(column).double(), "next": TensorDict(step, [1, 3])}, [1, 3])


F, T = False, True


@pytest.mark.parametrize(
    ("bootstrap", "done", "terminated", "expected", "weights", "closing"),
    [
        # 1 + 10/2 + 100/4, closed by 0.3/8
        ("standard", [F, F, F], [F, F, F], 31.0375, [1, 0.5, 0.25], [0, 0, 0.125]),
        ("reference", [F, F, F], [F, F, F], 31.0 + 0.3 / 16, [1, 0.5, 0.25], [0, 0, 0.0625]),
        # the row ends after its second step: (1 + 10/2 + 0.2/4) + (100 + 0.3/2)
        ("standard", [F, T, F], [F, F, F], 6.05 + 100.15, [1, 0.5, 1], [0, 0.25, 0.5]),
        ("reference", [F, T, F], [F, F, F], 6.05 + 100 + 0.3 / 4, [1, 0.5, 1], [0, 0.25, 0.25]),
        # terminated: nothing comes after
        ("standard", [F, T, F], [F, T, F], 6.0 + 100.15, [1, 0.5, 1], [0, 0, 0.5]),
        ("reference", [F, T, F], [F, T, F], 6.0 + 100 + 0.3 / 4, [1, 0.5, 1], [0, 0, 0.25]),
        ("standard", [F, F, T], [F, F, T], 31.0, [1, 0.5, 0.25], [0, 0, 0]),
        ("standard", [F, F, T], [F, F, F], 31.0375, [1, 0.5, 0.25], [0, 0, 0.125]),
        # every step is a row of its own
        ("standard", [T, T, T], [F, T, F], 111 + 0.1 / 2 + 0.3 / 2, [1, 1, 1], [0.5, 0, 0.5]),
        # published code forgets the rewards of a row that ends exactly at the last step
        ("reference", [F, F, T], [F, F, F], 0.3 / 2, [0, 0, 0], [0, 0, 0.5]),
        ("reference", [F, T, T], [F, F, F], 6.05 + 0.3 / 2, [1, 0.5, 0], [0, 0.25, 0.5]),
    ],
)
def test_return_of_envs_that_end_has_the_known_value(bootstrap, done, terminated, expected, weights, closing) -> None:
    loss, td = rollout(done, terminated)
    loss.bootstrap = bootstrap
    result = loss.actor_loss(td)
    assert result.item() * 3 == pytest.approx(-expected, abs=1e-9)
    result.backward()
    assert (td["next", "reward"].grad.flatten() * -3).tolist() == pytest.approx(weights)
    assert (td["next", "latent"].grad.flatten() * -3 / WEIGHT).tolist() == pytest.approx(closing)


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
def test_value_target_of_envs_that_end_has_the_known_value(done, terminated, expected) -> None:
    loss, td = rollout(done, terminated)
    assert loss.value_target(td).flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("terminated", "expected"), [([F, F, F], [1.05, 10.1, 100.15]), ([T, F, T], [1.0, 10.1, 100.0])]
)
def test_one_step_target_is_reward_plus_discounted_value_unless_terminated(terminated, expected) -> None:
    loss, td = rollout(terminated, terminated)
    loss.make_value_estimator("TD0", gamma=0.5)
    assert loss.value_target(td).flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_value_loss_is_the_mean_squared_distance_to_the_targets() -> None:
    loss, td = rollout([F, T, F], [F, T, F])
    td["latent"] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(1, 3, 1)
    targets = [1 + (0.1 + 10.0) / 4, 10.0, 100.15]
    expected = sum((WEIGHT * z - target) ** 2 for z, target in zip([1, 2, 3], targets)) / 3
    assert loss.value_loss(td).item() == pytest.approx(expected, rel=1e-6)
