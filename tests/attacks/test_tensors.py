"""Hostile files of tensors, in every way in which such a file is read."""

from __future__ import annotations

import hashlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.attacks.guard import refused
from tests.attacks.hostile import FILES, SLOW
from tests.modules.agent_files import save_pwm_agent
from torchrl_pwm import (
    PWMAgent,
    PWMWorldModel,
    TDMPC2ExperienceReplay,
    TDMPC2Model,
    convert_shards,
    import_dflex,
    load_world_model,
)
from torchrl_pwm._utils.door import pack_safetensors, read_safetensors, read_tensors
from torchrl_pwm.data import EpisodeSliceSampler, EpisodeStoreWriter
from torchrl_pwm.modules import load_quickstart
from torchrl_pwm.modules.agent_files import read_agent_file

pytest.importorskip("hydra")
from torchrl_pwm import load_policy
from torchrl_pwm.runs.policies import load_policy as load_networks


def small_model():
    return PWMWorldModel(5, 2, latent_dim=16, units=(8,), encoder_units=(8,))


@pytest.fixture(scope="module")
def places(tmp_path_factory, golden_folder):
    """What readers need beside the file: a data set, a finished run."""
    root = tmp_path_factory.mktemp("places")
    with EpisodeStoreWriter(root / "data", "mt30", {"cheetah-run": 2}, row_length=20) as writer:
        writer.write("cheetah-run", np.zeros((2, 21, 24)), np.zeros((2, 20, 6)), np.ones((2, 20)))
    shutil.copytree(golden_folder / "runs" / "finished" / "pwm_online", root / "policy_pt")
    shutil.copytree(golden_folder / "runs" / "finished" / "pwm_online", root / "world_model_pt")
    return root


def linked(path, target):
    target.unlink(missing_ok=True)
    target.symlink_to(path)
    return target


def with_manifest(path, places):
    """The folder of a checkpoint whose manifest has the checksum of what is in it."""
    data = path.read_bytes()
    manifest = {"file": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "step": 1}
    (path.parent / "checkpoint.json").write_text(json.dumps(manifest))
    return path.parent


def out(path):
    return path.parent / "out"


def in_run(part):
    return lambda path, places: linked(path, places / part.replace(".", "_") / part).parent


def replay(path, places):
    return TDMPC2ExperienceReplay(places / "data", 4, slice_len=5), linked(path, path.with_name("replay.pt")).parent


# How a reader is given a file, and reads it.
READERS = {
    "PWMWorldModel.from_tdmpc2": (None, PWMWorldModel.from_tdmpc2),
    "TDMPC2Model.from_checkpoint": (None, TDMPC2Model.from_checkpoint),
    "PWMAgent.from_pwm": (None, PWMAgent.from_pwm),
    "load_world_model": (None, load_world_model),
    "load_quickstart": (None, load_quickstart),
    "convert_shards": (None, lambda path: convert_shards([path], out(path), task_set="mt30", progress=False)),
    "import_dflex": (None, lambda path: import_dflex(path, out(path), progress=False)),
    "a replay": (replay, lambda both: both[0].loads(both[1])),
    "a sampler": (lambda path, places: linked(path, path.with_name("sampler.pt")).parent, EpisodeSliceSampler(5).loads),
    "a policy": (in_run("policy.pt"), lambda run: load_policy(run, "cpu")),
    "the model of a policy": (in_run("world_model.pt"), lambda run: load_policy(run, "cpu")),
    "networks of a run": (None, lambda path: load_networks(SimpleNamespace(actor_network=nn.Linear(2, 2)), path)),
    "a checkpoint": (with_manifest, lambda folder: load_world_model(folder)),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_file_is_refused_in_every_way_it_is_read(kind, tmp_path, places, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    record_property("tries", 1 if kind in SLOW else len(READERS))
    for number, (name, (give, read)) in enumerate(READERS.items()):
        if number and kind in SLOW:
            break
        path = tmp_path / str(number) / "file.pt"
        path.parent.mkdir()
        path.write_bytes(FILES[kind])
        try:
            refused(read, path if give is None else give(path, places))
        except BaseException as error:
            raise AssertionError(f"{name}: {error!r:.600}") from error
    assert not (tmp_path / "owned").exists()


WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "more": [torch.ones(2, dtype=torch.int64), "text", 3]}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(number, tmp_path):
    state = small_model().state_dict()
    state["_dynamics.0.weight"][0, 0] = number
    torch.save({"model": state}, tmp_path / "model.pt")
    for read in (PWMWorldModel.from_tdmpc2, load_world_model):
        refused(read, tmp_path / "model.pt", match=r"not finite in .*_dynamics\.0\.weight")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.bfloat16, torch.complex64], ids=str)
def test_numbers_of_any_type_that_are_not_finite_are_refused(kind, tmp_path):
    for name, number in {"good": 1.0, "bad": float("nan")}.items():
        torch.save({"a": torch.full((3,), number).to(kind)}, tmp_path / name)
        (tmp_path / f"{name}.safetensors").write_bytes(pack_safetensors({"a": torch.full((3,), number).to(kind)}, {}))
    assert read_tensors(tmp_path / "good", finite=True)["a"].dtype == kind
    refused(lambda path: read_tensors(path, finite=True), tmp_path / "bad", match="not finite in a")
    refused(lambda path: read_safetensors(path, finite=True), tmp_path / "bad.safetensors", match="not finite in a")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["critic"]["params.0"].fill_(torch.inf), r"not finite in critic\.params\.0"),
        (lambda c: c["critic_opt"]["state"][0]["exp_avg"].fill_(torch.nan), r"not finite in critic_opt\.params\.0"),
        (lambda c: c["obs_rms"].update(count=float("inf")), "obs_rms"),
        (lambda c: c["obs_rms"]["var"].fill_(torch.nan), "obs_rms"),
    ],
    ids=["weights", "moments of Adam", "count", "variance"],
)
def test_an_agent_with_numbers_that_are_not_finite_is_refused_by_name(change, said, tmp_path):
    save_pwm_agent(tmp_path / "whole.pt", 5, 1)
    contents = read_agent_file(tmp_path / "whole.pt")
    moments = {"mean": torch.zeros(5), "var": torch.ones(5), "count": 3.0}
    contents |= {"obs_rms": moments, "rew_rms": None, "ret_rms": None}
    torch.save(contents, tmp_path / "agent.pt")
    PWMAgent.from_pwm(tmp_path / "agent.pt")
    change(contents)
    torch.save(contents, tmp_path / "agent.pt")
    refused(PWMAgent.from_pwm, tmp_path / "agent.pt", match=said)
    refused(load_world_model, tmp_path / "agent.pt", match=said)


def test_what_was_written_in_other_ways_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    expanded = torch.ones(3).expand(1000, 3)
    shared = torch.arange(10.0)
    torch.save({"a": expanded, "b": shared[2:4], "c": shared[::2], "d": nn.Parameter(shared)}, tmp_path / "views.pt")
    assert repr(read_tensors(tmp_path / "older.pt")) == repr(WEIGHTS)
    found = read_tensors(tmp_path / "views.pt")
    assert torch.equal(found["a"], expanded) and found["c"].tolist() == [0, 2, 4, 6, 8]
    kinds = [torch.bool, torch.uint8, torch.uint16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn]
    several = {str(kind): torch.ones(3).to(kind) for kind in kinds}
    torch.save({**several, ("next", "reward"): {1, 2}, "size": torch.Size([2]), "raw": b"ab"}, tmp_path / "kinds.pt")
    assert [
        value.dtype for value in read_tensors(tmp_path / "kinds.pt").values() if isinstance(value, torch.Tensor)
    ] == kinds
