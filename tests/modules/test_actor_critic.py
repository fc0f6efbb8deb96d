from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm import make_pwm_actor, make_value_ensemble


@pytest.fixture(scope="module")
def published(golden):
    return golden("schedule_and_init")


def reference_actor(state, latent):
    """mu of the published layout: Linear -> Mish -> LayerNorm."""
    hidden, index = latent, 0
    while f"mu_net.{index + 2}.weight" in state:
        hidden = F.mish(F.linear(hidden, state[f"mu_net.{index}.weight"], state[f"mu_net.{index}.bias"]))
        scale, shift = state[f"mu_net.{index + 2}.weight"], state[f"mu_net.{index + 2}.bias"]
        hidden = F.layer_norm(hidden, hidden.shape[-1:], scale, shift)
        index += 3
    return F.linear(hidden, state[f"mu_net.{index}.weight"], state[f"mu_net.{index}.bias"])


def reference_critic(state, latent, net):
    """Value of one member of the published stack, normalisation not folded."""
    params = [state[f"params.{i}"][net] for i in range(len(state))]
    hidden = latent
    while len(params) > 2:
        weight, bias, gain, shift, *params = params
        hidden = F.layer_norm(F.mish(F.linear(hidden, weight, bias)), bias.shape, gain, shift)
    return F.linear(hidden, *params)


def randomised(module):
    """All parameters drawn at random, so that no gain is 1 and no bias 0."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def head(actor):
    return actor.get_submodule("module.0.module")


# The actor.


def test_actor_has_the_published_keys_and_shapes_in_order(published):
    state = head(make_pwm_actor(512, 8)).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == published["parameter_order_actor"]
    assert list(state) == list(published["parameter_order_actor"])


def test_actor_starts_with_the_published_statistics(published):
    state = head(make_pwm_actor(512, 8)).state_dict()
    for key, expected in published["init_statistics"]["actor"].items():
        value, n = state[key], state[key].numel()
        spread = 6 * max(expected["std"], 1e-9) / math.sqrt(n)
        assert value.mean().item() == pytest.approx(expected["mean"], abs=spread), key
        assert value.std(correction=0).item() == pytest.approx(expected["std"], abs=spread), key
        assert value.abs().max().item() == pytest.approx(max(expected["max"], -expected["min"]), rel=0.2), key


@pytest.mark.parametrize("units", [(12,), (12, 10), (12, 10, 6)])
def test_actor_loads_a_published_state_and_computes_its_mean(units):
    state = dict(head(randomised(make_pwm_actor(8, 3, units=units))).state_dict())
    actor = make_pwm_actor(8, 3, units=units)
    actor.load_reference_state_dict(state)
    latent = torch.randn(5, 8)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        action = actor(TensorDict({"latent": latent}, [5]))["action"]
    torch.testing.assert_close(action, torch.tanh(reference_actor(state, latent)), rtol=1e-4, atol=1e-5)


def test_actor_refuses_a_state_of_another_size():
    state = head(make_pwm_actor(8, 3)).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_pwm_actor(8, 2).load_reference_state_dict(state)
    del state["logstd"]
    with pytest.raises(RuntimeError, match="logstd"):
        make_pwm_actor(8, 3).load_reference_state_dict(state)


def test_actor_samples_tanh_of_a_gaussian_by_default():
    actor = make_pwm_actor(8, 2, init_log_std=-0.5)
    latent = torch.randn(1, 8).expand(20_000, 8)
    td = actor(TensorDict({"latent": latent}, [20_000]))
    pre_tanh = torch.atanh(td["action"].double())
    torch.testing.assert_close(td["scale"][0], torch.full((2,), math.exp(-0.5)))
    torch.testing.assert_close(pre_tanh.mean(0).float(), td["loc"][0], rtol=0, atol=0.02)
    torch.testing.assert_close(pre_tanh.std(0).float(), td["scale"][0], rtol=0.02, atol=0)


def test_evaluation_action_is_tanh_of_the_mean_and_does_not_vary():
    actor = make_pwm_actor(8, 2)
    td = TensorDict({"latent": torch.randn(4, 8)}, [4])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = actor(td.clone()), actor(td.clone())
    torch.testing.assert_close(first["action"], torch.tanh(first["loc"]))
    torch.testing.assert_close(first["action"], second["action"], rtol=0, atol=0)
    with set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(actor(td.clone())["action"], first["action"])


def test_sampled_action_carries_a_gradient_to_every_parameter():
    actor = make_pwm_actor(8, 2)
    actor(TensorDict({"latent": torch.randn(4, 8)}, [4]))["action"].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in actor.parameters())


def test_log_std_is_clamped_in_place_from_below_and_keeps_its_gradient():
    actor = make_pwm_actor(8, 3, min_log_std=-1.427)
    log_std = head(actor).logstd
    with torch.no_grad():
        log_std.copy_(torch.tensor([-5.0, -1.427, 0.5]))
    scale = actor.get_dist_params(TensorDict({"latent": torch.randn(2, 8)}, [2]))["scale"]
    torch.testing.assert_close(log_std.detach(), torch.tensor([-1.427, -1.427, 0.5]))
    torch.testing.assert_close(scale[0], log_std.detach().exp())
    scale.sum().backward()
    assert log_std.grad.gt(0).all()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_actor_takes_any_batch_shape_and_stays_in_its_bounds(batch):
    td = make_pwm_actor(8, 2, init_log_std=2.0)(TensorDict({"latent": torch.randn(*batch, 8)}, batch))
    assert td["action"].shape == (*batch, 2)
    assert td["action"].abs().le(1).all()


def test_actor_keys_can_be_named_and_nested():
    actor = make_pwm_actor(8, 2, in_key=("agent", "z"), out_key=("agent", "act"))
    td = actor(TensorDict({"agent": {"z": torch.randn(3, 8)}}, [3]))
    assert td["agent", "act"].shape == (3, 2)


# The value ensemble.


def test_critic_has_the_published_keys_and_shapes_in_order(published):
    state = make_value_ensemble(512).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == published["parameter_order_critic"]
    assert list(state) == list(published["parameter_order_critic"])


def test_critic_starts_with_the_published_statistics(published):
    state = make_value_ensemble(512).state_dict()
    for key, expected in published["init_statistics"]["critic"].items():
        value, n = state[key], state[key].numel()
        spread = 6 * expected["std"] / math.sqrt(n)
        assert value.mean().item() == pytest.approx(expected["mean"], abs=spread), key
        assert value.std(correction=0).item() == pytest.approx(expected["std"], abs=spread), key


def test_critic_weights_are_orthogonal_with_gain_sqrt_two_and_members_differ(published):
    state = make_value_ensemble(512).state_dict()
    for key, expected in published["critic_orthogonality"].items():
        weight = state[key]
        gram = weight @ weight.mT
        deviation = (gram - 2 * torch.eye(gram.shape[-1])).abs().max().item()
        assert expected["gram_max_dev_from_2I"] < 1e-5 and deviation < 1e-5, key
        assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize("units", [(), (12,), (12, 10), (12, 10, 6)])
@pytest.mark.parametrize("num_nets", [1, 3])
def test_folding_the_normalisation_changes_neither_values_nor_gradients(units, num_nets):
    critic = randomised(make_value_ensemble(8, units=units, num_nets=num_nets)).double()
    latent = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    state = dict(critic.named_parameters())
    plain = torch.stack([reference_critic(state, latent, net) for net in range(num_nets)])
    folded = critic(latent)
    torch.testing.assert_close(folded, plain)
    leaves = [latent, *state.values()]
    for result, expected in zip(
        torch.autograd.grad(folded.square().sum(), leaves), torch.autograd.grad(plain.square().sum(), leaves)
    ):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("batch", [(), (5,), (4, 5)])
def test_critic_puts_the_ensemble_first_and_takes_any_batch_shape(batch):
    critic, latent = make_value_ensemble(8), torch.randn(*batch, 8)
    assert critic(latent).shape == (3, *batch, 1)
    td = critic(TensorDict({"latent": latent}, batch))
    assert td.batch_size == (3, *batch)
    torch.testing.assert_close(td["state_value"], critic(latent))


def test_critic_leaves_its_input_alone():
    td = TensorDict({"latent": torch.randn(5, 8)}, [5])
    make_value_ensemble(8)(td)
    assert list(td.keys()) == ["latent"]


def test_critic_loads_a_published_state():
    source, critic = randomised(make_value_ensemble(8, units=(12, 10))), make_value_ensemble(8, units=(12, 10))
    critic.load_reference_state_dict(source.state_dict())
    latent = torch.randn(5, 8)
    torch.testing.assert_close(critic(latent), source(latent))
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_value_ensemble(8, units=(12, 9)).load_reference_state_dict(source.state_dict())


def test_critic_keys_can_be_named_and_nested():
    critic = make_value_ensemble(8, in_key=("agent", "z"), out_key=("agent", "value"))
    td = critic(TensorDict({"agent": {"z": torch.randn(4, 8)}}, [4]))
    assert td["agent", "value"].shape == (3, 4, 1)
