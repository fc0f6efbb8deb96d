"""The teaching figure of the variance of policy gradients."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchrl.envs import TransformedEnv

pytest.importorskip("matplotlib")

from torchrl_pwm import PWMWorldModel, WorldModelWrapper, make_pwm_actor
from torchrl_pwm.envs.simulators import AnalyticEnv

SCRIPT = Path(__file__).parents[2] / "examples" / "gradient_variance.py"
STEPS, SAMPLES = 6, 3


@pytest.fixture(scope="module")
def figure():
    spec = importlib.util.spec_from_file_location("gradient_variance_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def parts():
    """A model whose latents and rewards depend on their inputs, a policy's network and its noise, in float64."""
    model = PWMWorldModel(6, 1, latent_dim=16, encoder_units=(16,), units=(16,)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    network = make_pwm_actor(16, 1, units=(8,)).get_submodule("module.0.module").double()
    return model, network, torch.randn(STEPS, SAMPLES, 1, dtype=torch.float64)


def make_real(model, rows):
    simulator = AnalyticEnv("double_pendulum", rows, dtype=torch.float64, requires_grad=True, stochastic_init=False)
    return TransformedEnv(simulator, WorldModelWrapper(model))


def one_at_a_time(env, network, noise, h):
    """Gradient [P] of the summed reward of one sample, by plain autograd through the whole rollout."""
    state, total = env.reset(), 0.0
    for eps in noise[:h]:
        loc, scale = network(state["latent"].detach())
        state["action"] = torch.tanh(loc + scale * eps)
        transition, state = env.step_and_maybe_reset(state)
        total = total + transition["next", "reward"].sum()
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, list(network.parameters()))])


@pytest.mark.parametrize("dynamics", ["true", "model"])
def test_the_gradient_of_each_sample_and_horizon_is_that_of_plain_autograd(figure, parts, dynamics):
    model, network, noise = parts
    real, single = make_real(model, SAMPLES), make_real(model, 1)
    env, single_env = (
        (real, single) if dynamics == "true" else (real.transform.imagined_env(), single.transform.imagined_env())
    )
    found = list(figure.sampled_gradients(env, network, noise))
    assert len(found) == STEPS
    for h, gradients in enumerate(found, 1):
        for sample, gradient in enumerate(gradients):
            expected = one_at_a_time(single_env, network, noise[:, sample : sample + 1], h)
            assert expected.abs().max() > 1e-6
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_variance_and_signal_to_noise_ratio_have_the_papers_formulas(figure):
    gradients = torch.randn(20, 7, dtype=torch.float64) + torch.arange(7)
    gradients[:, 0] = 0.0  # neither signal nor noise
    samples = gradients.numpy()
    assert figure.variance(gradients) == pytest.approx(samples.var(0, ddof=1).mean())
    ratio = samples.mean(0) ** 2 / (samples.var(0, ddof=1) + 1e-9)
    assert figure.esnr(gradients) == pytest.approx(ratio.mean())
    noise = torch.randn(100, 10_000, dtype=torch.float64)
    assert figure.esnr(noise) == pytest.approx(1 / 100, rel=0.1)


def test_growth_is_the_factor_over_ten_steps_and_late_means_the_last_two_fifths(figure):
    steps = np.arange(1, 51)
    curves = figure.Curves(0.1 * 10 ** (steps / 20), steps.astype(float), torch.eye(50))
    assert curves.last == pytest.approx(0.1 * 10**2.5)
    assert curves.growth == pytest.approx(10**0.5)
    assert curves.late_esnr == pytest.approx(40.0)  # of h = 30..50
    other = figure.Curves(curves.variance, curves.esnr, -2 * torch.eye(50))
    assert figure.Pair(curves, other).cosine == pytest.approx(-np.ones(50))


def test_the_true_dynamics_are_rescaled_to_the_models_rewards(figure):
    data = figure.collect(4)
    before = data["next", "reward"].clone()
    std = figure.standardize_reward(data)
    after = data["next", "reward"]
    assert (after.mean().item(), after.std().item()) == pytest.approx((0.0, 1.0), abs=1e-5)
    torch.testing.assert_close(before / std - after, (before.mean() / std).expand_as(after), rtol=1e-4, atol=1e-4)


def test_the_script_draws_the_figure_and_says_which_parts_of_the_claim_hold(figure, tmp_path, capsys):
    sizes = {"seeds": 2, "episodes": 8, "updates": 4, "samples": 4, "steps": 5, "policies": 2}
    arguments = [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    figure.main([*arguments, "--picture", str(tmp_path / "figure.png")])
    out = capsys.readouterr().out
    assert out.count("model trained at H = 16") == out.count("true, latent of H = 3") == 2
    assert out.count("variance grows faster under the true dynamics") == 2
    assert out.count("late ESNR is higher in the model of H = 16") == 2
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_of_the_claim_holds_only_in_seeds_where_the_numbers_say_so(figure):
    def curves(growth, ratio):
        return figure.Curves(growth ** np.arange(10.0), np.full(10, ratio), torch.eye(10))

    def outcome(short_growth, long_ratio):
        # Two policies, of which one says little: the geometric mean decides.
        true = [curves(1.5, 1.0), curves(1.5, 1.0)]
        short = [curves(short_growth, 2.0), curves(1.5, 2.0)]
        long = [curves(1.1, long_ratio), curves(1.1, long_ratio)]
        return {3: list(map(figure.Pair, short, true)), 16: list(map(figure.Pair, long, true))}

    outcomes = [outcome(1.2, 3.0), outcome(1.6, 3.0), outcome(1.2, 1.5), outcome(1.2, 0.5)]
    assert list(figure.claims(outcomes).values()) == [
        [True, False, True, True],
        [True, True, True, True],
        [True, True, False, False],
        [True, True, True, False],
    ]
    said = figure.report(outcomes)
    assert "model of H = 3: in 3 of 4 seeds, and with 3 of 8 policies taken alone; this does not hold in all" in said
    assert "model of H = 16: in 4 of 4 seeds, and with 8 of 8 policies taken alone; this holds" in said
