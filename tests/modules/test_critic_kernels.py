"""Critics on a CPU: the numbers of torch's own functions, to within rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict

from tests.modules.test_actor_critic import randomised, reference_critic
from torchrl_pwm import FirstOrderLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.trainers.steppers import FirstOrderOptimizationStepper

# Torch says so whenever oneDNN is switched.
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")

ROWS = 2500  # several pieces, and a part of one


def by_torch():
    """A context in which all batches take torch's own functions."""
    return torch.backends.mkldnn.flags(enabled=False)


def make_critics(units=(48, 40), dtype=torch.float32):
    torch.manual_seed(0)
    return randomised(make_value_ensemble(7, units=units)).to(dtype)


def values_and_gradients(critics, latent, weights):
    latent = latent.clone().requires_grad_()
    values = critics(latent)
    return [values, *torch.autograd.grad((values * weights).sum(), [latent, *critics.parameters()])]


def test_values_and_gradients_are_as_exact_as_those_of_torch():
    critics, exact = make_critics(), make_critics(dtype=torch.float64)
    exact.load_state_dict(critics.state_dict())
    latent, weights = 4 * torch.randn(ROWS, 7), torch.randn(3, ROWS, 1)
    found = values_and_gradients(critics, latent, weights)
    with by_torch():
        torchs = values_and_gradients(critics, latent, weights)
    truth = values_and_gradients(exact, latent.double(), weights.double())
    for ours, theirs, true in zip(found, torchs, truth, strict=True):
        scale = true.abs().max()
        assert (ours - true).abs().max() / scale < 2 * (theirs - true).abs().max() / scale + 1e-6


def test_a_large_batch_has_the_values_of_its_rows_alone():
    critics, latent = make_critics(), torch.randn(ROWS, 7)
    together = critics(latent)
    alone = torch.cat([critics(part) for part in latent.split(500)], 1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


def test_a_batch_of_another_shape_and_one_without_gradients_have_the_same_values():
    critics, latent = make_critics(), torch.randn(50, 50, 7)
    flat = critics(latent.flatten(0, 1))
    assert torch.equal(critics(latent), flat.unflatten(1, (50, 50)))
    with torch.no_grad():
        assert torch.equal(critics(latent.flatten(0, 1)), flat)


@pytest.mark.parametrize("extreme", [-1e4, -90.0, 90.0, 1e4])
def test_extreme_activations_keep_finite_values_and_gradients(extreme):
    critics = make_critics()
    with torch.no_grad():
        critics.params[1].fill_(extreme)
    found = values_and_gradients(critics, torch.randn(ROWS, 7), torch.ones(3, ROWS, 1))
    with by_torch():
        torchs = values_and_gradients(critics, torch.randn(ROWS, 7), torch.ones(3, ROWS, 1))
    assert all(value.isfinite().all() for value in found) == all(value.isfinite().all() for value in torchs)


def test_a_nan_in_one_row_stays_there():
    critics, latent = make_critics(), torch.randn(ROWS, 7)
    latent[1200, 3] = torch.nan
    bad = critics(latent).isnan().any(0).flatten()
    assert bad.nonzero().flatten().tolist() == [1200]


def test_gradients_can_be_differentiated_again():
    critics, latent = make_critics(), torch.randn(ROWS, 7)

    def penalty_gradients():
        rows = latent.clone().requires_grad_()
        (slope,) = torch.autograd.grad(critics(rows).sum(), rows, create_graph=True)
        return torch.autograd.grad(slope.square().mean(), list(critics.parameters())[:-1], allow_unused=True)

    found = penalty_gradients()
    with by_torch():
        torchs = penalty_gradients()
    for ours, theirs in zip(found, torchs, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_they_can_be_mapped_and_compiled():
    critics, latent = make_critics(), torch.randn(2, ROWS, 7)
    expected = critics(latent)
    mapped = torch.vmap(critics.values)(latent).movedim(0, 1)
    torch.testing.assert_close(mapped, expected, rtol=1e-5, atol=1e-4)
    compiled = torch.compile(critics.values, backend="aot_eager")
    torch.testing.assert_close(compiled(latent), expected, rtol=1e-5, atol=1e-4)


def test_a_critic_pass_ends_where_that_of_torch_ends():
    """4 passes over 4 minibatches of 2,000 rows, from one start; the published pass has 16 of 8,192."""

    def passed():
        torch.manual_seed(0)
        loss = FirstOrderLoss(make_pwm_actor(5, 1), make_value_ensemble(5))
        stepper = FirstOrderOptimizationStepper(loss, critic_iterations=4)
        shape = (250, 32)
        following = TensorDict({"latent": torch.randn(*shape, 5), "reward": torch.randn(*shape, 1)}, shape)
        rollout = TensorDict({"latent": torch.randn(*shape, 5), "next": following}, shape)
        before = [param.detach().clone() for param in stepper.critic_params]
        metrics = stepper.update_critics(rollout, loss.value_target(rollout), rollout)
        moved = [param.detach() - start for param, start in zip(stepper.critic_params, before, strict=True)]
        return metrics, torch.cat([step.flatten() for step in moved])

    metrics, moved = passed()
    with by_torch():
        torchs_metrics, torchs_moved = passed()
    for key, value in torchs_metrics.items():
        torch.testing.assert_close(metrics[key], value, rtol=1e-5, atol=0.0)
    assert torchs_moved.norm() > 0.1
    assert (moved - torchs_moved).norm() / torchs_moved.norm() < 1e-3


def test_small_batches_are_bit_for_bit_those_of_the_published_layout_in_torch():
    critics, latent = make_critics(), torch.randn(100, 7)
    values = critics(latent)
    with by_torch():
        assert torch.equal(critics(latent), values)
    state = critics.state_dict()
    for net in range(3):
        torch.testing.assert_close(values[net], reference_critic(state, latent, net), rtol=1e-4, atol=1e-4)


def test_a_copy_of_the_critics_has_the_same_values():
    critics, latent = make_critics(), torch.randn(ROWS, 7)
    assert torch.equal(copy.deepcopy(critics)(latent), critics(latent))
