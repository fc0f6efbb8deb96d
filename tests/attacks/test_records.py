"""Hostile text in folders: configurations, manifests and records of runs."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tests.attacks.guard import refused
from tests.attacks.hostile import FILES
from torchrl_pwm import DamagedFileError, PWMWorldModel, load_world_model
from torchrl_pwm._utils.checkpoint import load_checkpoint, save_checkpoint
from torchrl_pwm._utils.door import pack_safetensors, read_json
from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter, read_memmap
from torchrl_pwm.evaluation import read_summary
from torchrl_pwm.modules.hub import load_folder

pytest.importorskip("hydra")
from torchrl_pwm import load_policy
from torchrl_pwm.runs.cli import command_config, report
from torchrl_pwm.runs.folder import claim_folder, finished, open_run
from torchrl_pwm.runs.saved import named_targets, names_own_code, read_config, read_result, read_seconds

RECORDS = {
    "nothing": "",
    "text": "hello",
    "half": '{"a": 1',
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep and whole": "[" * 500 + "]" * 500,
    "a long number": '{"version": ' + "9" * 10_000 + "}",
    "no text": b"\xff\xfe\x00{",
    "large": b"[" + b"1," * (9 << 20) + b"1]",
    "a list": "[1, 2]",
    "null": "null",
    "entries of other kinds": json.dumps(
        {key: [{}] for key in ["file", "size", "sha256", "task", "seconds", "format", "shape", "_type", "latent_dim"]}
    ),
}


def model_folder(folder, text):
    folder.mkdir()
    weights = PWMWorldModel(5, 2, latent_dim=16, units=(8,)).state_dict()
    (folder / "model.safetensors").write_bytes(pack_safetensors(weights, {}))
    write(folder / "config.json", text)
    return folder


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


READERS = {
    "a checkpoint": lambda text, at: (load_checkpoint, write(at / "checkpoint.json", text).parent),
    "a data set": lambda text, at: (EpisodeStore, write(at / "manifest.json", text).parent),
    "a memory map": lambda text, at: (read_memmap, write(at / "meta.json", text).parent),
    "a folder of a network": lambda text, at: (load_world_model, model_folder(at, text)),
    "a folder of a network by class": lambda text, at: (
        lambda p: load_folder(PWMWorldModel, p),
        model_folder(at, text),
    ),
    "a result": lambda text, at: (read_result, write(at / "result.json", text)),
    "a clock": lambda text, at: (read_seconds, write(at / "seconds.json", text)),
    "a summary": lambda text, at: (read_summary, write(at / "summary.json", text)),
}


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("name", READERS)
def test_a_hostile_record_is_refused_wherever_it_is_read(name, kind, tmp_path):
    refused(*READERS[name](RECORDS[kind], tmp_path / "folder"))


@pytest.mark.parametrize(
    "read", [load_world_model, read_json, PWMWorldModel.from_tdmpc2], ids=lambda read: read.__name__
)
def test_links_in_a_circle_and_pipes_are_refused(read, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refused(read, tmp_path / "a", match="leads nowhere|No checkpoint")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(read, tmp_path / "pipe", match="a pipe")


HUGE = {"latent_dim": 10**6, "units": [10**6, 10**6]}


@pytest.mark.parametrize("changed", [HUGE, {"num_tasks": 10**9}, {"units": [1] * 20_000}, {"latent_dim": "16"}])
def test_a_configuration_of_more_than_its_weights_takes_no_memory(changed, tmp_path):
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,))
    folder = model_folder(tmp_path / "model", json.dumps({**model.constructor_arguments, **changed}))
    refused(load_world_model, folder)
    state = model.state_dict()
    state._metadata[""]["arguments"] = {**model.constructor_arguments, **changed}
    torch.save({"model": state}, tmp_path / "model.pt")
    refused(load_world_model, tmp_path / "model.pt")
    refused(PWMWorldModel.from_tdmpc2, tmp_path / "model.pt")


def test_a_configuration_of_many_other_layers_is_refused_in_a_few_words(tmp_path):
    arguments = {**PWMWorldModel(5, 2, latent_dim=16, units=(8,)).constructor_arguments, "units": [1] * 100}
    refused(load_world_model, model_folder(tmp_path / "model", json.dumps(arguments)), match="do not make a PWMWorld")


@pytest.fixture
def run(tmp_path, golden_folder):
    return shutil.copytree(golden_folder / "runs" / "finished" / "pwm_online", tmp_path / "run")


@functools.cache
def composed():
    return command_config("online", ["env=analytic/double_pendulum"])


def ways(run):
    """Everything that reads the configuration of a run's folder."""
    config = copy.deepcopy(composed())
    config.resume = str(run)
    return {
        "load_policy": lambda: load_policy(run, "cpu"),
        "report": lambda: report([f"run={run}"]),
        "resume": lambda: open_run(config, []),
        "claim": lambda: claim_folder(config, run),
        "finished": lambda: finished(config, run),
        "read_config": lambda: read_config(run),
    }


CONFIGS = {
    "nothing": ("", "expected"),
    "a list": ("- 1\n- 2\n", "expected a mapping"),
    "a word": ("hello", "expected a mapping"),
    "no YAML": ("a: [1", "expected YAML"),
    "deep": ("a: " + "[" * 100_000, "nested more than"),
    "aliases": ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "refers to another part of itself"),
    "a type": ("a: !!python/object/apply:os.mkdir [owned]\n", "names a type"),
    "large": ("a: 1\n" * (1 << 19), "MiB"),
    "a long number": ("iterations: " + "9" * 10_000, "or damaged|names"),
    "no text": (b"\xff\xfe\x00", "expected YAML"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_hostile_configuration_of_a_run_is_refused(kind, run):
    (text, said), calls = CONFIGS[kind], ways(run)
    write(run / "config.yaml", text)
    if kind == "deep":  # takes a while, and is refused before readers differ
        calls = {"read_config": calls["read_config"]}
    for name, call in calls.items():
        try:
            refused(lambda _, call=call: call(), run, match=said)
        except BaseException as error:
            raise AssertionError(f"{name}: {error!r:.500}") from error


def multiplied(number):
    return ", ".join([f"'${{e{number}}}'"] * 20)


APPENDED = {
    "a call": ("evil: {_target_: os.mkdir, _args_: [owned]}", "names 'os.mkdir'"),
    "a call in a list": ("evil: [1, [{_target_: subprocess.run, args: [ls]}]]", "names 'subprocess.run'"),
    "a call through the package": ("evil: {_target_: torchrl_pwm.runs.cli.os.system, command: ls}", "os.system"),
    "a function of the package": ("evil: {_target_: torchrl_pwm._utils.files.replace_file}", "replace_file"),
    "a target by reference": ("evil: {_target_: '${name}'}\nname: os.mkdir", "names"),
    "a target that is none": ("evil: {_target_: [os.mkdir]}", "names"),
    "a module of Gymnasium's": ("evil: {task: 'os.path:Hopper-v5'}", "names 'os.path:Hopper-v5'"),
    "the environment": ("evil: ${oc.env:HOME}", "refers to"),
    "a resolver by reference": ("evil: ${${name}:HOME}\nname: oc.env", "refers to"),
    "text of references": ("evil: ${name}${name}\nname: a", "refers to"),
    "a circle": ("evil: ${other}\nother: ${evil}", "in a circle"),
    "references that multiply": (
        "\n".join([*(f"e{n}: [{multiplied(n + 1)}]" for n in range(6)), "e6: 1"]),
        "entries by reference",
    ),
}


@pytest.mark.parametrize("kind", APPENDED)
def test_a_configuration_that_names_anything_else_is_refused(kind, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text, said), calls = APPENDED[kind], ways(run)
    write(run / "config.yaml", (run / "config.yaml").read_text() + text + "\n")
    for name, call in calls.items():
        try:
            refused(lambda _, call=call: call(), run, match=said)
        except BaseException as error:
            raise AssertionError(f"{name}: {error!r:.500}") from error
    assert not (tmp_path / "owned").exists()


def with_env(run, target):
    text = (run / "config.yaml").read_text()
    write(run / "config.yaml", text.replace("torchrl_pwm.envs.simulators.AnalyticEnv", target))
    return run


def test_an_env_of_ones_own_is_named_anew_and_left_out_where_none_is_built(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_env(run, "os.mkdir")
    assert load_policy(run, "cpu").task_name
    with pytest.raises(DamagedFileError, match=r"env\._target_ names 'os\.mkdir'.*name it anew: on the command line"):
        read_config(run)
    saved = read_config(run, targets=["os.mkdir"])
    same = ["env=analytic/double_pendulum", f"resume={run}"]
    with pytest.raises(DamagedFileError, match="was refused"):
        open_run(command_config("online", same), [])
    config, _ = open_run(command_config("online", [*same, "env._target_=os.mkdir"]), ["env._target_=os.mkdir"])
    assert config.env._target_ == saved.env._target_ == "os.mkdir"
    assert not (tmp_path / "owned").exists()


def test_the_module_of_a_task_is_named_anew_and_left_out_where_no_env_is_built(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with_env(run, "torchrl_pwm.envs.make_gym_env")
    text = (run / "config.yaml").read_text()
    write(run / "config.yaml", text.replace("task: cartpole_swingup", "task: mine.envs:Arm-v0", 1))
    assert load_policy(run, "cpu").task_name == "Arm-v0"
    assert read_config(run, simulator=False).env.task == "Arm-v0"
    with pytest.raises(DamagedFileError, match=r"env\.task names 'mine\.envs:Arm-v0'.*on the command line env\.task="):
        read_config(run)
    named = named_targets(command_config("online", ["env.task=mine.envs:Arm-v0"]))
    assert read_config(run, targets=named).env.task == "mine.envs:Arm-v0"
    _, folder = open_run(command_config("online", ["env.task=mine.envs:space/Arm-v0"]), [])
    assert folder.name.endswith("_mine.envs_space_Arm-v0") and folder.parent.name == "runs"


@pytest.mark.parametrize(
    ("setting", "own"),
    [
        ("env.task=mine.envs:Arm-v0", True),
        ("+model.encoder._target_=mine.make_encoder", True),
        ("env._target_=torchrl_pwm.envs.make_gym_env", False),
        ("env.task=Hopper-v5", False),
        ("data.root=C:/arm", False),
    ],
)
def test_the_settings_that_a_resumed_run_is_told_again(setting, own):
    assert names_own_code(setting) is own


@pytest.mark.parametrize("kind", ["a pickle with code", "a storage beyond its record", "noise", "nothing"])
def test_a_hostile_network_in_a_folder_is_refused(kind, tmp_path):
    model = PWMWorldModel(5, 2, latent_dim=16, units=(8,))
    folder = model_folder(tmp_path / "model", json.dumps(model.constructor_arguments))
    write(folder / "model.safetensors", FILES[kind])
    refused(load_world_model, folder)
    if kind != "nothing":
        pytest.importorskip("huggingface_hub")
        refused(PWMWorldModel.from_pretrained, folder)


@pytest.fixture
def steps(tmp_path):
    TensorDict(
        {"observation": torch.zeros(2, 3, 4), "next": TensorDict({"r": torch.zeros(2, 3)}, [2, 3])}, [2, 3]
    ).memmap(tmp_path / "steps")
    return tmp_path / "steps"


@pytest.mark.parametrize(
    "change",
    [
        {"observation": {"shape": [2, 3, 1 << 38], "dtype": "torch.float32", "device": "cpu", "is_nested": False}},
        {"observation": {"shape": [2, 3, -4], "dtype": "torch.float32", "device": "cpu", "is_nested": False}},
        {"observation": {"shape": [2, 3, 4], "dtype": "torch.load", "device": "cpu", "is_nested": False}},
        {"observation": {"shape": [2, 3, 4], "dtype": "torch.float64", "device": "cpu", "is_nested": False}},
        {"../../secret": {"shape": [2, 3, 4], "dtype": "torch.float32", "device": "cpu", "is_nested": False}},
        {"..": {"type": "TensorDict"}},
        {"next": {"type": "NonTensorData"}},
        {"next": {"type": "os.system"}},
        {"_type": "<class 'os.system'>"},
        {"shape": [1 << 50]},
        {"shape": [3, 2]},
    ],
    ids=str,
)
def test_a_memory_map_that_lists_what_is_not_there_is_refused_and_left_as_it_is(change, steps):
    record = json.loads((steps / "meta.json").read_text())
    write(steps / "meta.json", json.dumps({**record, **change}))
    before = {path: path.stat().st_size for path in steps.rglob("*")}
    refused(read_memmap, steps)
    assert {path: path.stat().st_size for path in steps.rglob("*")} == before


@pytest.fixture
def data(tmp_path):
    with EpisodeStoreWriter(tmp_path / "data", "mt30", {"cheetah-run": 2}, row_length=20) as writer:
        writer.write("cheetah-run", np.zeros((2, 21, 24)), np.zeros((2, 20, 6)), np.ones((2, 20)))
    return tmp_path / "data"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["fields"]["steps"].update(shape=[1 << 40, 21, 31]),
        lambda m: m["fields"]["steps"].update(shape="x"),
        lambda m: m["fields"]["steps"].update(file="../other.bin"),
        lambda m: m["fields"].update(steps=None),
        lambda m: m.update(row_length=1e999),
        lambda m: m.update(row_length=10**30),
        lambda m: m["tasks"][0].update(stop=10**30),
        lambda m: m["tasks"][0].update(start="0"),
        lambda m: m["tasks"][0].update(observation_mean=3),
        lambda m: m.update(tasks={}),
        lambda m: m.update(task_names=[1] * 30),
    ],
)
def test_a_manifest_that_claims_what_is_not_there_is_refused(change, data):
    record = json.loads((data / "manifest.json").read_text())
    record.pop("sha256")
    change(record)
    write(data / "manifest.json", json.dumps(record))
    refused(EpisodeStore, data)


def test_a_manifest_of_a_checkpoint_does_not_lead_out_of_its_folder(tmp_path):
    save_checkpoint(tmp_path / "other", {"a": torch.ones(1)}, step=1)
    save_checkpoint(tmp_path / "own", {"a": torch.zeros(1)}, step=1)
    manifest = json.loads((tmp_path / "other" / "checkpoint.json").read_text())
    manifest["file"] = f"../other/{manifest['file']}"
    write(tmp_path / "own" / "checkpoint.json", json.dumps(manifest))
    refused(load_checkpoint, tmp_path / "own", match="is damaged")
