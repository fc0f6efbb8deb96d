"""Hostile files of tensors, in every way in which such a file is read."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.attacks.guard import guarded, refused
from tests.attacks.hostile import FILES, SLOW
from torchrl_pwm import (
    DamagedFileError,
    PWMAgent,
    PWMWorldModel,
    TDMPC2ExperienceReplay,
    TDMPC2Model,
    convert_shards,
    import_dflex,
    load_world_model,
)
from torchrl_pwm._utils.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from torchrl_pwm._utils.door import pack_safetensors, read_safetensors, read_tensors
from torchrl_pwm.data import EpisodeSliceSampler, EpisodeStoreWriter
from torchrl_pwm.modules import load_quickstart

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
def test_a_hostile_file_is_refused_in_every_way_it_is_read(kind, tmp_path, places, monkeypatch):
    monkeypatch.chdir(tmp_path)
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
# How a file is written, and all that reading it gives.
WHOLE = {
    "a file of tensors": (lambda path: save_tensors(path, WEIGHTS), lambda path: read_tensors(path)),
    "a model": (
        lambda path: save_tensors(path, {"model": small_model().state_dict()}),
        lambda path: (model := PWMWorldModel.from_tdmpc2(path)).constructor_arguments | dict(model.state_dict()),
    ),
    "safetensors": (
        lambda path: path.write_bytes(
            pack_safetensors({"a": torch.arange(5.0), "b": torch.ones(2).half()}, {"x": "y"})
        ),
        lambda path: (read := read_safetensors(path))[0] | dict(sorted(read[1].items())),
    ),
    "a checkpoint": (
        lambda path: with_manifest(save_checkpoint(path.parent, WEIGHTS, step=1).rename(path), None),
        lambda path: load_checkpoint(path.parent),
    ),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_changed_or_cut_file_is_refused_or_gives_what_was_written(kind, tmp_path):
    torch.manual_seed(0)
    write, read = WHOLE[kind]
    path = tmp_path / "file.pt"
    write(path)
    whole, expected = path.read_bytes(), repr(read(path))
    draws = random.Random(kind)
    noticed = 0
    for number in range(150):
        data = bytearray(whole)
        if number % 5:
            data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
        else:
            del data[draws.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            with guarded():
                found = repr(read(path))
        except DamagedFileError:
            noticed += 1
        else:
            assert found == expected
    assert noticed > 30
    path.write_bytes(whole)
    assert repr(read(path)) == expected


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(number, tmp_path):
    state = small_model().state_dict()
    state["_dynamics.0.weight"][0, 0] = number
    torch.save({"model": state}, tmp_path / "model.pt")
    for read in (PWMWorldModel.from_tdmpc2, load_world_model):
        refused(read, tmp_path / "model.pt", match=r"not finite in .*_dynamics\.0\.weight")


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
