"""The file that carries a world model and the start states of its tasks."""

from __future__ import annotations

import json

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

from torchrl_pwm import MT80, PWMWorldModel
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.modules import QUICKSTART_FILE, load_quickstart, pack_quickstart

TASKS = ("walker-stand", "mw-reach")


def make(num=7, simnorm_dim=4, **options):
    torch.manual_seed(0)
    model = PWMWorldModel(
        39, 6, latent_dim=16, units=(12,), simnorm_dim=simnorm_dim, num_bins=11, vmin=-3.0, vmax=4.0, num_tasks=80,
        task_dim=4, action_dims=MT80.action_dims, **options,
    )  # fmt: skip
    model.set_observation_statistics(torch.randn(80, 39), torch.rand(80, 39))
    starts = {}
    for task in TASKS:
        observation = torch.randn(num, 39)
        observation[:, MT80[task].observation_dim :] = 0
        index = torch.full((num,), MT80[task].index)
        starts[task] = TensorDict({"observation": observation, "action": torch.rand(num, 6), "task": index}, [num])
    behavior = {task: {"behavior_return_mean": 1.5, "success_mean": None} for task in TASKS}
    return model, starts, behavior


def pack(tmp_path, **options):
    model, starts, behavior = make(**options)
    file = tmp_path / "quickstart.safetensors"
    file.write_bytes(pack_quickstart(model, starts, behavior, task_set="mt80", source={"seed": 3}))
    return file, model, starts, behavior


@pytest.mark.parametrize("simnorm_dim", [4, 0])
def test_what_is_packed_is_read(tmp_path, simnorm_dim):
    file, model, _, behavior = pack(tmp_path, simnorm_dim=simnorm_dim)
    quickstart = load_quickstart(file)
    assert (quickstart.tasks, quickstart.task_set, quickstart.source) == (TASKS, "mt80", {"seed": 3})
    assert quickstart.statistics() == behavior
    observation, action = torch.randn(5, 39), torch.rand(5, 6)
    for task in (0, 65):
        latent = model.encode_observation(observation, task)
        assert torch.equal(quickstart.world_model.encode_observation(observation, task), latent)
        old, new = (m.decode_reward(m.reward_logits(latent, action, task)) for m in (model, quickstart.world_model))
        assert torch.equal(old, new)
    assert not any(p.requires_grad for p in quickstart.world_model.parameters())
    assert torch.equal(quickstart.world_model.action_masks, model.action_masks)


def test_start_states_come_back_with_zeros_in_the_padding(tmp_path):
    file, _, starts, _ = pack(tmp_path)
    quickstart = load_quickstart(file).starts
    for task in TASKS:
        size = MT80[task].action_dim
        # kept in half precision
        assert torch.equal(quickstart[task]["observation"], starts[task]["observation"].half().float())
        assert torch.equal(quickstart[task]["action"][:, :size], starts[task]["action"][:, :size].half().float())
        assert (quickstart[task]["action"][:, size:] == 0).all()
        assert torch.equal(quickstart[task]["task"], starts[task]["task"])


GROUNDED = {"encoder_norm": True, "decoder": True, "num_heads": 3}
GROUNDED["observation_dims"] = [spec.observation_dim for spec in (MT80[name] for name in MT80.names)]


@pytest.mark.parametrize("options", [{}, GROUNDED], ids=["one head", "heads and decoder"])
def test_arguments_that_the_weights_do_not_tell_come_back(tmp_path, options):
    file, model, _, _ = pack(tmp_path, residual=True, observation_clip=2.0, **options)
    again = load_quickstart(file).world_model
    assert again.constructor_arguments == model.constructor_arguments
    observation, task = torch.randn(3, 39), torch.tensor([0, 1, 2])
    assert again.encode_observation(observation, task).equal(model.encode_observation(observation, task))


def test_padding_takes_no_room(tmp_path):
    pack(tmp_path, num=500)
    tensors = load_file(tmp_path / "quickstart.safetensors")
    assert tensors["starts.walker-stand.observation"].shape == (500, 24)
    assert tensors["starts.mw-reach.action"].shape == (500, 4)


def test_starts_and_statistics_must_be_of_the_same_tasks():
    model, starts, behavior = make()
    with pytest.raises(ValueError, match=r"starts are of \['mw-reach', 'walker-stand'\], statistics of \['mw-reach'\]"):
        pack_quickstart(model, starts, {"mw-reach": behavior["mw-reach"]}, task_set="mt80", source={})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no quickstart in .*none\.safetensors"):
        load_quickstart(tmp_path / "none.safetensors")


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    file, *_ = pack(tmp_path)
    content = file.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[:-100])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    for wrong in (cut, foreign):
        for read in (load_quickstart, PWMWorldModel.from_quickstart):
            with pytest.raises(ValueError, match="is no quickstart file, or damaged"):
                read(wrong)


def test_the_quickstart_of_the_package():
    quickstart = load_quickstart()
    assert QUICKSTART_FILE.stat().st_size <= 8 * 2**20
    specs = [get_task_set(quickstart.task_set)[task] for task in quickstart.tasks]
    bodies = {spec.name.split("-")[0] for spec in specs if spec.suite != "metaworld"}
    assert len(specs) >= 8 and len(bodies) >= 4 and sum(spec.suite == "metaworld" for spec in specs) >= 3
    assert PWMWorldModel.from_quickstart().latent_dim == quickstart.world_model.latent_dim
    for spec in specs:
        starts = quickstart.starts[spec.name]
        assert (starts["task"] == spec.index).all() and starts["action"].abs().max() <= 1
        assert starts["observation"].isfinite().all()
    with safetensors.safe_open(QUICKSTART_FILE, "pt") as archive:
        assert json.loads(archive.metadata()["quickstart"])["source"]["versions"]["torch"]
