"""An error inside a loss or an imagined env leaves every network with its weights."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator

from tests.objectives.test_loss_checklist import (
    ACTION,
    BATCH,
    HORIZON,
    LATENT,
    OBSERVATION,
    make_model,
    make_pwm,
    starts,
)
from torchrl_pwm import ImaginedEnv, PWMLoss, PWMWorldModel, SHACLoss, make_pwm_actor, make_value_ensemble
from torchrl_pwm.envs.simulators import AnalyticEnv
from torchrl_pwm.modules import DynamicsEnsemble


def numbers(*modules: nn.Module) -> list[list[torch.Tensor]]:
    return [[*module.parameters(), *module.state_dict().values()] for module in modules]


def wrong_observation():
    loss = make_pwm()
    return lambda: loss(TensorDict({"observation": torch.randn(BATCH, OBSERVATION + 1)}, [BATCH])), loss


def wrong_critic():
    """A network whose size nobody can ask for before it is called, as the next one."""
    critic = ValueOperator(nn.Linear(LATENT + 8, 1), in_keys=["latent"])
    loss = PWMLoss(make_pwm_actor(LATENT, ACTION), critic, make_model(), horizon=HORIZON)
    return lambda: loss(starts()), loss


def wrong_actor():
    net = nn.Sequential(nn.Linear(LATENT + 8, 2 * ACTION), NormalParamExtractor())
    spread = TensorDictModule(net, ["latent"], ["loc", "scale"])
    actor = ProbabilisticActor(spread, in_keys=["loc", "scale"], distribution_class=TanhNormal)
    loss = PWMLoss(actor, make_value_ensemble(LATENT), make_model(), horizon=HORIZON)
    return lambda: loss(starts()), loss


def wrong_disagreement():
    model = make_model()
    ensemble = DynamicsEnsemble(PWMWorldModel(OBSERVATION, ACTION, latent_dim=LATENT + 8, units=(12,)))
    networks = make_pwm_actor(LATENT, ACTION), make_value_ensemble(LATENT)
    loss = PWMLoss(*networks, model, horizon=HORIZON, disagreement=ensemble, disagreement_coef=1.0)
    return lambda: loss(starts()), loss, ensemble


def wrong_behavior():
    loss = make_pwm(behavior_coef=1.0)
    return lambda: loss(starts().set("action", torch.zeros(BATCH, ACTION + 1))), loss


def wrong_minibatch():
    loss = make_pwm()
    rollout = TensorDict({"latent": torch.randn(4, LATENT + 1), "value_target": torch.zeros(4, 1)}, [4])
    return lambda: loss.value_loss(rollout), loss


def interrupted():
    loss = make_pwm()

    def stop(*_):
        raise KeyboardInterrupt

    loss.world_model.dynamics_network[0].register_forward_pre_hook(stop)
    return lambda: loss(starts()), loss


def wrong_simulator_action():
    loss = SHACLoss(make_pwm_actor(5, 2, in_key="observation"), make_value_ensemble(5, in_key="observation"), horizon=2)
    env = AnalyticEnv("cartpole_swingup", 3, requires_grad=True)
    return lambda: loss.rollout(env, env.reset()), loss


CASES = (
    wrong_observation,
    wrong_critic,
    wrong_actor,
    wrong_disagreement,
    wrong_behavior,
    wrong_minibatch,
    interrupted,
    wrong_simulator_action,
)


@pytest.mark.parametrize("case", CASES)
def test_a_loss_that_fails_leaves_its_networks_whole(case) -> None:
    call, loss, *others = case()
    modules = [loss, loss.actor_network, loss.value_network, *others]
    if isinstance(loss, PWMLoss):
        modules.append(loss.world_model)
    before = numbers(*modules)
    with pytest.raises((ValueError, RuntimeError, KeyboardInterrupt)):
        call()
    after = numbers(*modules)
    for ours, theirs in zip(before, after, strict=True):
        assert len(ours) == len(theirs)
        assert all(a is b or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_imagined_step_that_fails_leaves_the_model_whole() -> None:
    model = make_model()
    before = numbers(model)
    env = ImaginedEnv(model)
    td = env.reset(TensorDict({"observation": torch.randn(BATCH, OBSERVATION)}, [BATCH]))
    with pytest.raises(ValueError, match="actions of size"):
        env.step(td.set("action", torch.zeros(BATCH, ACTION + 1)))
    assert before[0] and all(a is b or torch.equal(a, b) for a, b in zip(before[0], numbers(model)[0], strict=True))


def test_after_an_error_a_joint_backward_still_trains_the_model() -> None:
    loss = make_pwm()
    with pytest.raises(ValueError, match="observation"):
        loss(TensorDict({"observation": torch.randn(BATCH, OBSERVATION + 1)}, [BATCH]))
    model = loss.world_model
    latent = model.encode_observation(torch.randn(BATCH, OBSERVATION))
    (loss(starts())["loss_actor"] + model.next_latent(latent, torch.zeros(BATCH, ACTION)).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in model.dynamics_network.parameters())
