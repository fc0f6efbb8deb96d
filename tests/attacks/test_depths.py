"""Files that name many more layers than they hold: they are refused after a few, wherever a network is built."""

from __future__ import annotations

import contextlib
import json
import re
import shutil

import pytest
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from tests.attacks.guard import refused
from torchrl_pwm import DamagedFileError, PWMAgent, PWMWorldModel, TDMPC2Model, load_world_model
from torchrl_pwm._utils.door import pack_safetensors
from torchrl_pwm.modules import make_pwm_actor, make_value_ensemble
from torchrl_pwm.modules.arguments import build_for
from torchrl_pwm.modules.hub import load_folder

pytest.importorskip("hydra")
from omegaconf import OmegaConf

from torchrl_pwm import load_policy
from torchrl_pwm.runs.policies import load_actor, policy_file
from torchrl_pwm.runs.world_model import load_world_model as load_configured

DEEP = [1] * 600


@contextlib.contextmanager
def few_layers(most=500):
    """Fails if the block gives modules more parameters than files of a few layers have."""
    made = [0]

    def count(module, name, parameter):
        made[0] += 1

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
    assert made[0] < most


def small_model(**options):
    return PWMWorldModel(5, 2, latent_dim=16, units=(8,), encoder_units=(8,), **options)


def networks():
    model = small_model()
    actor, critics = make_pwm_actor(16, 2, units=(8,)), make_value_ensemble(16, units=(8,))
    return {"PWMWorldModel": model, "TDMPC2Model": TDMPC2Model(model), "PWMAgent": PWMAgent(model, actor, critics)}


def with_depth(arguments, place):
    """The arguments of a network with many layers at a place in them."""
    arguments = json.loads(json.dumps(arguments))
    *parts, name = place.split(".")
    inner = arguments
    for part in parts:
        inner = inner[part]
    inner[name] = DEEP
    return arguments


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("PWMWorldModel", "units"),
        ("PWMWorldModel", "encoder_units"),
        ("TDMPC2Model", "units"),
        ("TDMPC2Model", "world_model.units"),
        ("PWMAgent", "actor.units"),
        ("PWMAgent", "critics.units"),
        ("PWMAgent", "world_model.encoder_units"),
    ],
)
def test_a_folder_that_names_thousands_of_layers_is_refused_after_a_few(name, place, tmp_path):
    network = networks()[name]
    arguments = {**with_depth(network.constructor_arguments, place), "torchrl_pwm_class": name}
    (tmp_path / "model.safetensors").write_bytes(pack_safetensors(network.state_dict(), {}))
    (tmp_path / "config.json").write_text(json.dumps(arguments))
    with few_layers():
        refused(lambda path: load_folder(type(network), path), tmp_path, match="do not make a")
        refused(load_world_model, tmp_path, match="do not make a")


@pytest.mark.parametrize("read", [PWMWorldModel.from_tdmpc2, load_world_model], ids=["from_tdmpc2", "load_world_model"])
def test_a_file_that_names_thousands_of_layers_is_refused_after_a_few(read, tmp_path):
    state = small_model().state_dict()
    state._metadata[""]["arguments"] = with_depth(small_model().constructor_arguments, "units")
    torch.save({"model": state}, tmp_path / "model.pt")
    with few_layers():
        refused(read, tmp_path / "model.pt", match="tensors or more")


@pytest.mark.parametrize("name", ["pwm_online", "shac"])
def test_a_run_that_names_thousands_of_layers_is_refused_after_a_few(name, tmp_path, golden_folder):
    run = shutil.copytree(golden_folder / "runs" / "finished" / name, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    layers = "  - 1\n" * len(DEEP)
    deep, changes = re.subn(r"(\nactor:\n(?:  .*\n)*?  units:\n)(?:  - .*\n)+", rf"\g<1>{layers}", config)
    assert changes == 1
    (run / "config.yaml").write_text(deep)
    with few_layers():
        refused(lambda path: load_policy(path, "cpu"), run, match="tensors or more")


def test_networks_of_a_run_with_thousands_of_layers_in_its_configuration_are_refused_after_a_few(tmp_path):
    task = "cheetah-run"
    options = {"observation_dim": 39, "action_dim": 6, "num_tasks": 80, "latent_dim": 16, "task_dim": 4, "units": [8]}
    model = PWMWorldModel(**options, num_bins=None, action_dims=[6] * 80)
    file = policy_file(tmp_path, task, 0)
    file.parent.mkdir(parents=True)
    torch.save({"actor": make_pwm_actor(16, 6, units=(8,)).state_dict()}, file)
    torch.save({"model": model.state_dict()}, tmp_path / "world_model.pt")
    model_config = {"_target_": "torchrl_pwm.PWMWorldModel", "latent_dim": 16, "task_dim": 4, "units": DEEP}
    config = OmegaConf.create(
        {
            "seed": 0,
            "checkpoint": None,
            "task_set": "mt80",
            "actor": {"_target_": "torchrl_pwm.make_pwm_actor", "units": DEEP},
            "model": {**model_config, "num_bins": None},
        }
    )
    with few_layers():
        refused(lambda folder: load_actor(config, model, folder, task), tmp_path, match="tensors or more")
        refused(lambda path: load_configured(config, path), tmp_path / "world_model.pt", match="tensors or more")


def test_a_network_of_as_many_layers_as_there_are_weights_ends_somewhere():
    weights = {str(number): torch.ones(1) for number in range(9000)}
    with few_layers(3000), pytest.raises(DamagedFileError, match="of more than 2048 tensors"):
        build_for(weights, lambda: torch.nn.ParameterList(torch.ones(1) for _ in range(9000)), {})
