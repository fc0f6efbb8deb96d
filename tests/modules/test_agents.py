"""Agents in the files that the published code saves, and what can be done with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from tests.modules.agent_files import published_moments, save_pwm_agent, save_shac_agent
from torchrl_pwm import (
    AnalyticEnv,
    DamagedFileError,
    PWMAgent,
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    SHACLoss,
    WorldModelPolicy,
    evaluate_policy,
    load_world_model,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.trainers import PWMOptimizationStepper, WorldModelOptimizationStepper, load_agent

FILE = Path(__file__).parents[1] / "golden" / "pwm_agent_checkpoint.pt"
FORWARD = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def agent():
    return PWMAgent.from_pwm(FILE)


@pytest.fixture
def expected(golden):
    return golden("pwm_agent_expected")


# The published file.


def test_the_world_model_gives_the_published_latents_and_rewards(agent, expected):
    model, action = agent.world_model, expected["action"]
    latent = model.encode_observation(expected["observation"])
    torch.testing.assert_close(latent, expected["latent"], **FORWARD)
    torch.testing.assert_close(model.next_latent(latent, action), expected["next_latent"], **FORWARD)
    logits = model.reward_logits(latent, action)
    torch.testing.assert_close(logits, expected["reward_normalized"], **FORWARD)
    torch.testing.assert_close(model.decode_reward(logits, "symlog"), expected["reward_normalized"], **FORWARD)
    torch.testing.assert_close(model.decode_reward(logits), expected["reward"], **FORWARD)


def test_actor_and_critics_give_the_published_actions_and_values(agent, expected):
    td = TensorDict({"observation": expected["observation"]}, [5])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.testing.assert_close(agent.policy(td)["action"], expected["action_mean"], **FORWARD)
    torch.testing.assert_close(td["latent"], expected["latent"], **FORWARD)
    torch.testing.assert_close(agent.critics(td)["state_value"], expected["values"], **FORWARD)


def test_the_moments_are_the_published_ones(agent, expected):
    found = {
        "obs_rms": agent.observation_moments,
        "rew_rms": agent.world_model.reward_moments,
        "ret_rms": agent.return_moments,
    }
    for name, moments in found.items():
        rms = expected["rms"][name]
        torch.testing.assert_close(moments.mean, rms["mean"].reshape(moments.mean.shape), rtol=0, atol=0)
        torch.testing.assert_close(moments.var, rms["var"].reshape(moments.var.shape), rtol=0, atol=0)
        assert float(moments.count) == pytest.approx(rms["count"])


def test_the_sizes_are_the_published_ones(agent, expected):
    config, arguments = expected["config"], agent.constructor_arguments
    for name in ("observation_dim", "action_dim", "latent_dim", "units", "encoder_units"):
        assert arguments["world_model"][name] == config[name]
    assert arguments["actor"]["units"] == config["actor_units"]
    assert (arguments["critics"]["units"], arguments["critics"]["num_nets"]) == (
        config["critic_units"],
        config["num_critics"],
    )


def test_normalized_observations_are_clipped_at_five(agent):
    model, moments = agent.world_model, agent.observation_moments
    far, limit = moments.mean + 9 * moments.std, moments.mean + 5 * moments.std
    torch.testing.assert_close(model.encode_observation(far), model.encode_observation(limit))
    within = moments.mean + 4 * moments.std
    assert not torch.allclose(model.encode_observation(within), model.encode_observation(limit))


# Training goes on.


def test_the_adam_states_of_the_file_go_to_the_parameters_they_are_of(agent):
    contents = torch.load(FILE, weights_only=False, pickle_module=_without_moments())
    loss = PWMLoss(agent.actor, agent.critics, agent.world_model, horizon=3)
    stepper = PWMOptimizationStepper(loss, iterations=10)
    model_stepper = WorldModelOptimizationStepper(
        PWMWorldModelLoss.single_task(agent.world_model), iterations=10, encoder_lr_scale=1.0
    )
    assert load_agent(agent, loss, stepper, model_stepper) == ["actor", "critic", "world_model"]
    for name, optimizer in (
        ("actor", stepper.actor_optimizer),
        ("critic", stepper.critic_optimizer),
        ("world_model", model_stepper.optimizer),
    ):
        own, published = optimizer.state_dict(), contents[f"{name}_opt"]["state"]
        assert own["state"].keys() == published.keys()
        for index, state in published.items():
            for entry in ("step", "exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(own["state"][index][entry], state[entry], rtol=0, atol=0)
    assert stepper.actor_optimizer.param_groups[0]["lr"] == 5e-4
    assert float(loss.return_moments.count) == pytest.approx(150.0001)


def test_an_agent_is_trained_further(agent):
    loss = PWMLoss(agent.actor, agent.critics, agent.world_model, horizon=3)
    stepper = PWMOptimizationStepper(loss, iterations=10)
    load_agent(agent, loss, stepper)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    stepper.update(TensorDict({"observation": torch.randn(8, 7)}, [8]))
    changed = {name.split(".")[0] for name, value in agent.state_dict().items() if not value.equal(before[name])}
    assert changed == {"actor", "critics"}


def test_adam_states_of_other_networks_are_refused(agent):
    other = PWMLoss(make_pwm_actor(16, 3, units=(8,)), make_value_ensemble(16), agent.world_model)
    with pytest.raises(ValueError, match="Adam state of the agent's actor is of other networks"):
        load_agent(agent, other, PWMOptimizationStepper(other))


def _without_moments():
    """A pickle module that knows no class of moments, so that the test reads the rest of the file by itself."""
    import pickle
    import types

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            return type(name, (), {}) if module.startswith("pwm.") else super().find_class(module, name)

    return types.SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="pickle")


# Files of every form.


@pytest.mark.parametrize("obs_rms", [False, True])
@pytest.mark.parametrize("rew_rms", [False, True])
def test_moments_are_there_or_not(tmp_path, obs_rms, rew_rms):
    save_pwm_agent(tmp_path / "agent.pt", 5, 1, obs_rms=obs_rms, rew_rms=rew_rms)
    model = PWMAgent.from_pwm(tmp_path / "agent.pt").world_model
    assert (model.observation_mean is not None, model.reward_moments is not None) == (obs_rms, rew_rms)
    assert model.observation_clip == (5.0 if obs_rms else None)


def test_the_class_of_the_moments_need_not_be_there_and_is_not_looked_up(tmp_path):
    save_pwm_agent(tmp_path / "agent.pt", 5, 1, obs_rms=True)
    with published_moments() as kind:
        kind.__setstate__ = lambda self, state: pytest.fail("the pickled class was used")
        assert PWMAgent.from_pwm(tmp_path / "agent.pt").observation_moments is not None


def test_an_agent_acts_in_an_env(tmp_path):
    save_pwm_agent(tmp_path / "agent.pt", 5, 1)
    policy = PWMAgent.from_pwm(tmp_path / "agent.pt").policy
    assert isinstance(policy, WorldModelPolicy)
    result = evaluate_policy(policy, AnalyticEnv("cartpole_swingup", 2, episode_length=5), episodes=2)
    assert result.return_mean < 0


def test_shac_agents_act_on_normalized_observations_and_are_trained_further(tmp_path):
    actor, critics = save_shac_agent(tmp_path / "agent.pt", 5, 1)
    agent = PWMAgent.from_pwm(tmp_path / "agent.pt")
    observation, moments = torch.randn(4, 5), agent.normalizer.moments
    normalized = (observation - moments.mean) / (moments.var + 1e-5).sqrt()
    td = agent.policy(TensorDict({"observation": observation}, [4]))
    inputs = TensorDict({"normalized_observation": normalized}, [4])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        td = agent.policy(TensorDict({"observation": observation}, [4]))
        torch.testing.assert_close(td["action"], actor(inputs)["action"])
    torch.testing.assert_close(agent.critics(td)["state_value"], critics(inputs)["state_value"])
    assert agent.world_model is None
    loss = SHACLoss(agent.actor, agent.critics, normalizer=agent.normalizer, horizon=3)
    load_agent(agent, loss)
    env = AnalyticEnv("cartpole_swingup", 4, requires_grad=True)
    rollout, _ = loss.rollout(env, env.reset())
    loss(rollout)["loss_actor"].backward()
    assert all(param.grad is not None for param in agent.actor.parameters())


def test_a_model_of_a_shac_agent_is_refused(tmp_path):
    save_shac_agent(tmp_path / "agent.pt", 5, 1)
    with pytest.raises(ValueError, match="agent of SHAC, which has no world model"):
        load_world_model(tmp_path / "agent.pt")


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_in_an_agent_is_refused_and_not_executed(tmp_path):
    save_pwm_agent(tmp_path / "agent.pt", 5, 1, env=Touch(tmp_path / "executed"))
    with pytest.raises(DamagedFileError, match=r"agent\.pt was refused: it refers to getattr"):
        PWMAgent.from_pwm(tmp_path / "agent.pt")
    assert not (tmp_path / "executed").exists()
    with published_moments():
        torch.load(tmp_path / "agent.pt", weights_only=False)
    assert (tmp_path / "executed").exists(), "the file would not have done anything"


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"actor": None}, "expected a state dict under actor"),
        ({"critic": {"params.0": torch.zeros(3, 4, 16)}}, "Unknown layout of critics"),
        ({"actor": {"logstd": torch.zeros(1)}}, "Unknown layout of an actor"),
        ({"ret_rms": {"mean": torch.zeros(1)}}, r"expected running moments under ret_rms \(mean, var and count\)"),
        ({"ret_rms": {"mean": torch.zeros(1), "var": torch.tensor([float("nan")]), "count": 1.0}}, "that are finite"),
        ({"actor_opt": {"state": {0: {"step": 1}}}}, "Adam under actor_opt does not fit the parameter logstd"),
        (
            {"world_model": {"_encoder.0.weight": torch.zeros(4, 4)}, "world_model_opt": None},
            "Incomplete checkpoint|Incomplete or inconsistent",
        ),
    ],
)
def test_parts_that_are_not_what_they_should_be_are_named(tmp_path, further, message):
    save_pwm_agent(tmp_path / "agent.pt", 5, 1, **further)
    with pytest.raises(ValueError, match=message) as raised:
        PWMAgent.from_pwm(tmp_path / "agent.pt")
    assert "agent.pt" in str(raised.value)


def test_a_world_model_alone_is_no_agent(tmp_path):
    torch.save(PWMWorldModel(5, 1, latent_dim=16, units=(8,)).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"no agent of PWM or SHAC: .* read by load_world_model"):
        PWMAgent.from_pwm(tmp_path / "model.pt")


def test_parts_that_do_not_fit_together_are_refused():
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,))
    with pytest.raises(ValueError, match="actor and critics read 8 and 16 entries, what is before them gives 16"):
        PWMAgent(model, make_pwm_actor(8, 2), make_value_ensemble(16))
    with pytest.raises(ValueError, match="writes 3 entries of the action, the world model reads 2"):
        PWMAgent(model, make_pwm_actor(16, 3), make_value_ensemble(16))
    with pytest.raises(ValueError, match=r"one of make_pwm_actor\(...\), found Linear"):
        PWMAgent(model, torch.nn.Linear(16, 2), make_value_ensemble(16))


def test_an_agent_keeps_the_names_of_its_entries(tmp_path):
    pytest.importorskip("huggingface_hub")
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,))
    model.set_keys(observation=("agents", "state"), latent="z")
    agent = PWMAgent(model, make_pwm_actor(16, 2, in_key="z"), make_value_ensemble(16, in_key="z"))
    agent.save_pretrained(tmp_path)
    td = TensorDict({"agents": {"state": torch.randn(4, 5)}}, [4])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        actions = [each.policy(td.clone())["action"] for each in (agent, PWMAgent.from_pretrained(tmp_path))]
    assert torch.equal(*actions)
