"""Folders of save_pretrained: networks come back bit for bit, without a pickle."""

from __future__ import annotations

import json

import pytest
import torch
from tensordict import TensorDict

pytest.importorskip("huggingface_hub")

from tests.modules.agent_files import save_pwm_agent, save_shac_agent
from tests.modules.test_loading import FORMS, assert_same, build, forms
from torchrl_pwm import (
    DamagedFileError,
    PWMAgent,
    PWMWorldModel,
    TDMPC2Model,
    load_world_model,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.modules import RunningMoments


@forms
def test_a_world_model_comes_back_bit_for_bit(options, tmp_path):
    model = build(options)
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert_same(model, PWMWorldModel.from_pretrained(tmp_path))


def test_a_model_without_statistics_comes_back_without_them(tmp_path):
    PWMWorldModel(5, 2, latent_dim=16, units=(8,)).save_pretrained(tmp_path)
    assert PWMWorldModel.from_pretrained(str(tmp_path)).observation_mean is None


@pytest.mark.parametrize("save", [save_pwm_agent, save_shac_agent])
def test_an_agent_comes_back_bit_for_bit(save, tmp_path):
    save(tmp_path / "agent.pt", 5, 1, **({"obs_rms": True} if save is save_pwm_agent else {}))
    agent = PWMAgent.from_pwm(tmp_path / "agent.pt")
    agent.save_pretrained(tmp_path / "folder")
    again = PWMAgent.from_pretrained(tmp_path / "folder")
    assert again.constructor_arguments == agent.constructor_arguments
    assert list(again.state_dict()) == list(agent.state_dict())
    assert all(a.equal(b) for a, b in zip(again.state_dict().values(), agent.state_dict().values()))
    actions = []
    for policy in (agent.policy, again.policy):
        torch.manual_seed(0)
        actions.append(policy(TensorDict({"observation": torch.linspace(-3, 3, 20).view(4, 5)}, [4]))["action"])
    assert actions[0].equal(actions[1])


def test_an_agent_of_ones_own_comes_back(tmp_path):
    model = build(FORMS["residual"])
    actor = make_pwm_actor(16, 2, units=(8,), min_log_std=-3.0, out_key=("agents", "action"))
    agent = PWMAgent(model, actor, make_value_ensemble(16, units=(8,), num_nets=2), return_moments=RunningMoments())
    agent.save_pretrained(tmp_path)
    again = PWMAgent.from_pretrained(tmp_path)
    assert again.constructor_arguments == agent.constructor_arguments
    td = again.policy(TensorDict({"observation": torch.zeros(3, 5)}, [3]))
    assert td["agents", "action"].shape == (3, 2)
    assert_same(model, again.world_model)


def test_a_td_mpc2_model_comes_back_bit_for_bit(tmp_path):
    model = TDMPC2Model(build({"num_bins": 11, "simnorm_dim": 4}), num_q=3, episodic=True, episode_lengths=100)
    model.save_pretrained(tmp_path)
    again = TDMPC2Model.from_pretrained(tmp_path)
    assert again.constructor_arguments == model.constructor_arguments
    assert all(a.equal(b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_saving_again_replaces_what_is_there(tmp_path):
    PWMWorldModel(5, 2, latent_dim=16, units=(8,)).save_pretrained(tmp_path)
    model = build(FORMS["simnorm of 4"])
    model.save_pretrained(tmp_path)
    assert_same(model, PWMWorldModel.from_pretrained(tmp_path))


def test_the_configuration_is_the_constructors_arguments(tmp_path):
    build(FORMS["tasks"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["action_dims"] == [2, 1] and config["units"] == [12, 12] and config["vmin"] == -10.0


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_names_it(lost, tmp_path):
    build({}).save_pretrained(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(FileNotFoundError, match=lost.replace(".", r"\.")):
        PWMWorldModel.from_pretrained(tmp_path)


def test_damaged_files_are_named(tmp_path):
    build({}).save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedFileError, match=r"model\.safetensors is no weights of a network: .*damaged"):
        PWMWorldModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(
        DamagedFileError, match=r"config\.json is no configuration of a network, or damaged: expected JSON"
    ):
        PWMWorldModel.from_pretrained(tmp_path)


def test_weights_of_another_configuration_are_refused(tmp_path):
    build({}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "units": [8]}))
    with pytest.raises(DamagedFileError, match="another version, or is damaged"):
        PWMWorldModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "newer": True}))
    with pytest.raises(DamagedFileError, match=r"another version, or is damaged.*newer"):
        PWMWorldModel.from_pretrained(tmp_path)


def test_a_folder_of_another_class_says_which(tmp_path):
    PWMAgent(build({}), make_pwm_actor(16, 2), make_value_ensemble(16)).save_pretrained(tmp_path)
    with pytest.raises(DamagedFileError, match=r"holds a PWMAgent, not a PWMWorldModel: use PWMAgent\.from_pretrained"):
        PWMWorldModel.from_pretrained(tmp_path)


def test_a_network_is_fetched_from_the_hub(hub, tmp_path):
    model = build(FORMS["residual"])
    model.save_pretrained(tmp_path / "folder")
    for name in ("config.json", "model.safetensors"):
        hub.files[f"user/model/resolve/main/{name}"] = (tmp_path / "folder" / name).read_bytes()
    assert_same(model, PWMWorldModel.from_pretrained("user/model", cache_dir=tmp_path / "cache"))


def not_finite(make, key, number, folder):
    """A folder whose weights hold a number that is not finite, with the checksum that goes with them."""
    network = make()
    network.get_parameter(key).data.view(-1)[0] = number
    network.save_pretrained(folder)


AGENT = "world_model._dynamics.0.weight"
MODELS = {
    "a world model": (PWMWorldModel, lambda: build(FORMS["residual"]), "_dynamics.0.weight"),
    "a TD-MPC2 model": (TDMPC2Model, lambda: TDMPC2Model(build({"num_bins": 11, "simnorm_dim": 4})), AGENT),
    "an agent": (
        PWMAgent,
        lambda: PWMAgent(
            build(FORMS["residual"]), make_pwm_actor(16, 2, units=(8,)), make_value_ensemble(16, units=(8,))
        ),
        AGENT,
    ),
}


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("kind", MODELS)
def test_weights_that_are_not_finite_are_refused_with_file_and_key(kind, number, tmp_path):
    cls, make, key = MODELS[kind]
    not_finite(make, key, number, tmp_path)
    for read in (cls.from_pretrained, load_world_model):
        with pytest.raises(DamagedFileError) as raised:
            read(tmp_path)
        assert str(tmp_path / "model.safetensors") in str(raised.value) and key in str(raised.value)
