"""SHAC on a linear-quadratic simulator whose returns and gradients are known by hand (float64)."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import ActionScaling, Compose, RenameTransform, RewardSum, TransformedEnv
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import SoftUpdate

from tests.objectives.quadratic_env import GOES, TERMINATED, TRUNCATED, A, B, C, Q, QuadraticEnv
from torchrl_pwm import FirstOrderLoss, ObservationNormalizer, SHACLoss, make_pwm_actor, make_value_ensemble

THETA, SIGMA, GAMMA, LAMBDA, WEIGHT = -0.6, 0.3, 0.95, 0.9, -1.3
HORIZON, ENVS = 5, 4
MEAN, VAR = 0.4, 2.5
KEY = "normalized_observation"

# Env 0 goes on, 1 is truncated and terminated in the middle, 2 terminates, 3 is truncated, at the end.
SCRIPT = [
    [GOES] * 5,
    [GOES, TRUNCATED, GOES, TERMINATED, GOES],
    [GOES, GOES, GOES, GOES, TERMINATED],
    [TERMINATED, GOES, GOES, GOES, TRUNCATED],
]
STARTS = torch.tensor([[0.5], [-1.0], [1.5], [-0.3]], dtype=torch.float64)


class Policy(nn.Module):
    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, observation):
        return self.theta * observation, torch.full_like(observation, SIGMA)


def make_normalizer():
    normalizer = ObservationNormalizer(1).double()
    normalizer.moments.mean.fill_(MEAN)
    normalizer.moments.var.fill_(VAR)
    normalizer.moments.count.fill_(10.0)
    return normalizer


def make_loss(theta=THETA, *, normalizer=None, normalize_returns=False, **options):
    key = "observation" if normalizer is None else KEY
    actor = ProbabilisticActor(
        TensorDictModule(Policy(theta), [key], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    value = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(value.weight, WEIGHT)
    critic = TensorDictModule(value, [key], ["state_value"])
    options = {"horizon": HORIZON, **options}
    loss = SHACLoss(actor, critic, normalizer=normalizer, normalize_returns=normalize_returns, **options)
    return loss.make_value_estimator("TDLambda", gamma=GAMMA, lmbda=LAMBDA)


def make_noise():
    return torch.randn(HORIZON, ENVS, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def by_hand(theta, noise, *, mean=0.0, var=1.0 - 1e-5, script=SCRIPT):
    """Per env: minus the returns added up, their gradient in theta, and the value targets, by plain recursions."""
    scale = math.sqrt(var + 1e-5)
    losses, slopes, targets = [], [], []
    for row, ends in enumerate(script):
        z, dz, discount = float(STARTS[row]), 0.0, 1.0
        loss = slope = 0.0
        rewards, values = [], []
        for k, end in enumerate(ends):
            u = math.tanh(theta * (z - mean) / scale + SIGMA * float(noise[k, row]))
            du = (1 - u * u) * ((z - mean) / scale + theta * dz / scale)
            rewards.append(-(Q * z * z + C * u * u))
            loss -= discount * rewards[-1]
            slope += discount * (2 * Q * z * dz + 2 * C * u * du)
            z, dz = A * z + B * u, A * dz + B * du
            discount *= GAMMA
            values.append(0.0 if end == TERMINATED else WEIGHT * (z - mean) / scale)
            if end != GOES or k == len(ends) - 1:
                loss -= discount * values[-1]
                slope -= 0.0 if end == TERMINATED else discount * WEIGHT * dz / scale
                z, dz, discount = float(STARTS[row]), 0.0, 1.0
        following, returns = 0.0, []
        for k in reversed(range(len(ends))):
            mixed = (
                values[k] if ends[k] != GOES or k == len(ends) - 1 else (1 - LAMBDA) * values[k] + LAMBDA * following
            )
            following = rewards[k] + GAMMA * mixed
            returns.insert(0, following)
        losses.append(loss), slopes.append(slope), targets.append(returns)
    return losses, slopes, targets


def roll(loss, env=None):
    env = QuadraticEnv(SCRIPT, starts=STARTS) if env is None else env
    return loss.rollout(env, env.reset(), make_noise())


NORMALIZED = pytest.mark.parametrize("normalized", [False, True], ids=["raw", "normalized"])


@NORMALIZED
def test_loss_and_gradient_of_a_window_with_resets_are_the_analytic_ones(normalized):
    loss = make_loss(normalizer=make_normalizer() if normalized else None)
    result = loss.actor_loss(roll(loss)[0])
    result.backward()
    losses, slopes, _ = by_hand(THETA, make_noise(), **({"mean": MEAN, "var": VAR} if normalized else {}))
    assert result.item() == pytest.approx(sum(losses) / ENVS / HORIZON, abs=1e-12)
    gradient = next(loss.actor_network_params.parameters()).grad.item()
    assert gradient == pytest.approx(sum(slopes) / ENVS / HORIZON, abs=1e-12)


def test_each_env_has_its_own_return():
    loss = make_loss(reduction="none")
    result = loss.actor_loss(roll(loss)[0]) * HORIZON
    assert result.tolist() == pytest.approx(by_hand(THETA, make_noise())[0], abs=1e-12)


def test_the_returns_are_divided_by_their_running_spread_without_centring():
    loss = make_loss(normalize_returns=True)
    result = loss.actor_loss(roll(loss)[0])
    returns = torch.tensor(by_hand(THETA, make_noise())[0])
    # before the first window: mean 0, variance 1, count 1e-4
    total = ENVS + 1e-4
    moment = 1e-4 + returns.var(correction=0) * ENVS + returns.mean() ** 2 * 1e-4 * ENVS / total
    assert result.item() == pytest.approx((returns.mean() / (moment / total + 1e-5).sqrt()).item(), rel=1e-6)


@NORMALIZED
def test_targets_are_lambda_returns_that_end_with_each_episode(normalized):
    loss = make_loss(normalizer=make_normalizer() if normalized else None)
    target = loss.value_target(roll(loss)[0])
    _, _, expected = by_hand(THETA, make_noise(), **({"mean": MEAN, "var": VAR} if normalized else {}))
    torch.testing.assert_close(target.squeeze(-1), torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)


def test_the_value_is_the_minimum_of_the_ensemble_at_the_observation_before_the_reset():
    value = make_value_ensemble(1, units=(8,), in_key="observation").double()
    actor = make_pwm_actor(1, 1, units=(8,), in_key="observation").double()
    loss = SHACLoss(actor, value, horizon=HORIZON)
    rollout, td = roll(loss)
    result = loss.next_value(rollout)
    # by the dynamics from the root: what is stored under "next" is no restarted env
    before_reset = A * rollout["observation"] + B * rollout["action"]
    expected = value.values(before_reset).min(0).values
    expected[rollout["next", "terminated"]] = 0.0
    torch.testing.assert_close(result, expected)
    assert torch.equal(td["observation"][2:], STARTS[2:]) and not td["done"].any()


def test_windows_go_on_where_the_last_one_ended_with_the_graph_cut():
    env, loss = QuadraticEnv(num_envs=ENVS), make_loss()
    td = env.reset()
    first, td = loss.rollout(env, td)
    loss.actor_loss(first).backward()
    second, td = loss.rollout(env, td)
    assert torch.equal(second["observation"][:, 0], first["next", "observation"][:, -1])
    # a graph that reached back into the first window would be freed by now
    loss.actor_loss(second).backward()
    assert "action" not in td


def test_transforms_that_carry_state_through_a_window_work():
    env = TransformedEnv(QuadraticEnv(SCRIPT, starts=STARTS), Compose(RewardSum()))
    loss, plain = make_loss(), make_loss()
    td = env.reset()
    for _ in range(2):
        rollout, td = loss.rollout(env, td, make_noise())
        loss.actor_loss(rollout).backward()
    assert rollout["next", "episode_reward"].shape == (ENVS, HORIZON, 1)
    torch.testing.assert_close(plain.actor_loss(roll(plain)[0]), loss.actor_loss(roll(loss)[0]))


def test_moments_stand_still_in_a_window_and_see_each_of_its_observations_after():
    loss = make_loss(normalizer=make_normalizer())
    moments = loss.normalizer.moments
    rollout, _ = roll(loss)
    assert (moments.mean, moments.var, moments.count) == (MEAN, VAR, 10.0)
    expected = (rollout["observation"] - MEAN) / math.sqrt(VAR + 1e-5)
    torch.testing.assert_close(rollout[KEY], expected)
    torch.testing.assert_close(rollout["next", KEY], (rollout["next", "observation"] - MEAN) / math.sqrt(VAR + 1e-5))
    loss.actor_loss(rollout).backward()
    seen = rollout["observation"].detach().flatten()
    total = 10.0 + len(seen)
    mean = (10.0 * MEAN + seen.sum()) / total
    torch.testing.assert_close(moments.mean, mean[None])
    second = (10.0 * (VAR + MEAN**2) + seen.square().sum()) / total
    torch.testing.assert_close(moments.var, (second - mean**2)[None])
    assert moments.count == total


def test_evaluation_mode_leaves_all_moments_as_they_are():
    loss = make_loss(normalizer=make_normalizer(), normalize_returns=True).eval()
    loss(roll(loss)[0])
    assert loss.normalizer.moments.mean == MEAN and loss.return_moments.count == pytest.approx(1e-4)


def test_the_policy_is_the_normaliser_and_the_actor():
    loss = make_loss(normalizer=make_normalizer())
    assert list(loss.policy.in_keys) == ["observation"]
    td = loss.policy(TensorDict({"observation": STARTS}, [ENVS]))
    torch.testing.assert_close(td["loc"], THETA * (STARTS - MEAN) / math.sqrt(VAR + 1e-5))
    assert list(make_loss().policy.in_keys) == ["observation"]


def test_moments_are_saved_with_the_loss():
    loss, other = make_loss(normalizer=make_normalizer()), make_loss(normalizer=ObservationNormalizer(1).double())
    loss.actor_loss(roll(loss)[0])
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other.normalizer.state_dict(), loss.normalizer.state_dict())
    assert any(key.startswith("normalizer.") for key in loss.state_dict())


def test_a_delayed_value_network_supplies_the_bootstrap_and_follows_slowly():
    loss = make_loss(delay_value=True)
    updater = SoftUpdate(loss, tau=0.25)
    rollout, _ = roll(loss)
    before, target = loss.next_value(rollout), loss.value_target(rollout)
    weight = next(loss.value_network_params.parameters())
    with torch.no_grad():
        weight.add_(1.0)
    torch.testing.assert_close(loss.next_value(rollout), before)
    torch.testing.assert_close(loss.value_target(rollout), target)
    updater.step()
    torch.testing.assert_close(loss.next_value(rollout), before * (WEIGHT + 0.25) / WEIGHT)
    assert any("target_value_network_params" in key for key in loss.state_dict())
    loss.value_loss(rollout).backward()
    assert weight.grad.abs() > 0


@pytest.mark.filterwarnings("ignore:No target network updater")
@pytest.mark.parametrize("delay", [False, True])
def test_without_delay_the_value_network_itself_supplies_it(delay):
    loss = make_loss(delay_value=delay)
    rollout, _ = roll(loss)
    before = loss.next_value(rollout)
    with torch.no_grad():
        next(loss.value_network_params.parameters()).mul_(2.0)
    factor = 1.0 if delay else 2.0
    torch.testing.assert_close(loss.next_value(rollout), factor * before)


def test_the_actor_loss_sends_no_gradient_to_the_critic_nor_the_value_loss_to_the_actor():
    loss = make_loss(normalizer=make_normalizer())
    losses = loss(roll(loss)[0])
    actor, critic = (list(params.parameters()) for params in (loss.actor_network_params, loss.value_network_params))
    losses["loss_actor"].backward(retain_graph=True)
    assert all(p.grad is None for p in critic) and all(p.grad.abs().sum() > 0 for p in actor)
    actor[0].grad = None
    losses["loss_value"].backward()
    assert all(p.grad is None for p in actor) and all(p.grad.abs().sum() > 0 for p in critic)


def test_without_noise_given_the_policy_draws_its_own():
    env, loss = QuadraticEnv(num_envs=ENVS), make_loss()
    with torch.no_grad():
        actions = [loss.rollout(env, env.reset())[0]["action"] for _ in range(2)]
    assert not torch.equal(*actions)


def test_a_first_order_loss_on_the_window_gives_the_same():
    loss = make_loss()
    plain = FirstOrderLoss(loss.actor_network, loss.value_network, normalize_returns=False)
    plain.make_value_estimator("TDLambda", gamma=GAMMA, lmbda=LAMBDA)
    rollout, _ = roll(loss)
    for key, value in loss(rollout).items():
        torch.testing.assert_close(plain(rollout)[key], value)


def test_entries_of_other_names_and_other_bounds_work():
    env = TransformedEnv(QuadraticEnv(SCRIPT, starts=STARTS, bound=2.0), ActionScaling())
    env.append_transform(RenameTransform(["observation"], ["state"]))
    env.append_transform(RenameTransform([], [], ["action"], ["move"]))
    actor = make_pwm_actor(1, 1, units=(8,), in_key="state", out_key="move").double()
    loss = SHACLoss(actor, make_value_ensemble(1, units=(8,), in_key="state").double(), horizon=3)
    loss.set_keys(action="move")
    rollout, _ = loss.rollout(env, env.reset())
    loss(rollout)["loss_actor"].backward()
    torch.testing.assert_close(
        rollout["next", "state"], A * rollout["state"] + B * 2.0 * rollout["move"], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("horizon", [0, -1])
def test_a_window_has_at_least_one_step(horizon):
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        make_loss(horizon=horizon)


def test_a_policy_without_distribution_is_refused():
    actor = TensorDictModule(nn.Linear(1, 1), ["observation"], ["action"])
    with pytest.raises(ValueError, match="probabilistic actor"):
        SHACLoss(actor, make_value_ensemble(1, in_key="observation"))


def test_an_env_without_gradient_is_refused_with_its_keyword():
    with pytest.raises(ValueError, match="requires_grad=True"):
        roll(make_loss(), QuadraticEnv(SCRIPT, requires_grad=False))
    with torch.no_grad():
        roll(make_loss(), QuadraticEnv(SCRIPT, requires_grad=False))


def test_envs_that_are_done_at_the_start_are_refused():
    env, loss = QuadraticEnv(num_envs=ENVS), make_loss()
    td = env.reset()
    td["done"][1] = True
    with pytest.raises(ValueError, match=r"1 of 4 envs are done where the window begins.*env\.reset"):
        loss.rollout(env, td)


@pytest.mark.parametrize(
    ("normalizer", "named"), [(None, "observation"), (ObservationNormalizer(1, in_key="state"), "state")]
)
def test_a_missing_observation_is_named(normalizer, named):
    env, loss = QuadraticEnv(num_envs=ENVS), make_loss(normalizer=normalizer)
    with pytest.raises(ValueError, match=f"SHACLoss needs the entry '{named}'"):
        loss.rollout(env, env.reset().exclude("observation"))


def test_observations_of_another_size_are_refused_by_the_normaliser():
    with pytest.raises(ValueError, match=r"shape \[\*, 3\], found \(4, 1\).*observation_dim=1"):
        roll(make_loss(normalizer=ObservationNormalizer(3).double()))


def test_other_bounds_and_names_of_the_action_are_refused():
    with pytest.raises(ValueError, match=r"\[-2, 2\].*ActionScaling"):
        roll(make_loss(), QuadraticEnv(SCRIPT, bound=2.0))
    loss = make_loss()
    loss.set_keys(action="torque")
    with pytest.raises(ValueError, match=r"'torque'.*set_keys\(action"):
        roll(loss)


@pytest.mark.parametrize("shape", [(HORIZON - 1, ENVS, 1), (HORIZON, ENVS, 2)])
def test_noise_of_another_shape_is_refused(shape):
    env, loss = QuadraticEnv(num_envs=ENVS), make_loss()
    with pytest.raises(ValueError, match="noise must be"):
        loss.rollout(env, env.reset(), torch.zeros(shape).double())


def test_gradients_of_simulated_windows_agree_with_finite_differences():
    width = 1e-6
    up, down = (make_loss(THETA + d, normalizer=make_normalizer()) for d in (width, -width))
    difference = (up.actor_loss(roll(up)[0]) - down.actor_loss(roll(down)[0])) / (2 * width)
    loss = make_loss(normalizer=make_normalizer())
    loss.actor_loss(roll(loss)[0]).backward()
    torch.testing.assert_close(
        next(loss.actor_network_params.parameters()).grad, difference.detach(), rtol=1e-6, atol=1e-8
    )


def test_entries_may_be_nested():
    loss = make_loss()
    plain, _ = roll(loss)
    expected = loss.eval()(plain)
    key = ("agent", "seen")
    actor = ProbabilisticActor(
        TensorDictModule(Policy(THETA), [key], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=[("agent", "act")],
        distribution_class=TanhNormal,
    )
    normalizer = ObservationNormalizer(1, in_key=("agent", "state"), out_key=key).double()
    normalizer.moments.var.fill_(1 - 1e-5)
    critic = TensorDictModule(nn.Linear(1, 1, bias=False, dtype=torch.float64), [key], ["state_value"])
    nested = SHACLoss(actor, critic, horizon=HORIZON, normalizer=normalizer, normalize_returns=False).eval()
    nested.load_state_dict({**nested.state_dict(), **loss.state_dict()})
    nested.set_keys(action=("agent", "act"))
    env = TransformedEnv(QuadraticEnv(SCRIPT, starts=STARTS), RenameTransform(["observation"], [("agent", "state")]))
    env.append_transform(RenameTransform([], [], ["action"], [("agent", "act")]))
    rollout, _ = nested.rollout(env, env.reset(), make_noise())
    for name, result in nested(rollout).items():
        torch.testing.assert_close(result, expected[name])
