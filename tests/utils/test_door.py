"""Files that are no checkpoints are named as what they are, wherever checkpoints are read."""

from __future__ import annotations

import functools
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

from torchrl_pwm import DamagedFileError, PWMAgent, PWMWorldModel, TDMPC2Model, load_world_model
from torchrl_pwm._utils.door import read_tensors
from torchrl_pwm.modules import load_quickstart

READERS = {
    "PWMWorldModel.from_tdmpc2": PWMWorldModel.from_tdmpc2,
    "PWMAgent.from_pwm": PWMAgent.from_pwm,
    "TDMPC2Model.from_checkpoint": TDMPC2Model.from_checkpoint,
    "load_world_model": load_world_model,
    "read_tensors": read_tensors,
    "load_quickstart": load_quickstart,
}
reading = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def torch_bytes(content, folder):
    torch.save(content, folder / "content")
    return (folder / "content").read_bytes()


def weights(folder):
    return torch_bytes({"model": PWMWorldModel(5, 2, latent_dim=16, units=(8,)).state_dict()}, folder)


# What a file holds, and what is said of it.
FILES = {
    "a web page": (lambda folder: b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "it is a web page"),
    "a web page after blanks": (lambda folder: b"\n\n  <html>", "it is a web page"),
    "an XML answer": (lambda folder: b"<?xml version='1.0'?><Error>AccessDenied</Error>", "it is a web page"),
    "text": (lambda folder: b"Not Found\n", "it is text, beginning 'Not Found'"),
    "JSON": (lambda folder: json.dumps({"error": "no access"}).encode(), "it is text, beginning"),
    "text in other letters": (lambda folder: "не найдено ".encode() * 100, "it is text, beginning 'не найдено"),
    "a Git LFS pointer": (lambda folder: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "LFS pointer"),
    "nothing": (lambda folder: b"", "it is empty"),
    "half a file": (lambda folder: weights(folder)[:3000], r"cut short or damaged \(3000 bytes\)"),
    "the first bytes": (lambda folder: weights(folder)[:8], r"cut short or damaged \(8 bytes\)"),
    "all but the last byte": (lambda folder: weights(folder)[:-1], r"cut short or damaged"),
    "noise": (lambda folder: bytes(range(256)), r"of another kind, or damaged \(256 bytes\)"),
    "a pickle with code": (lambda folder: pickle.dumps(Hostile(), 2), "was refused: it refers to posix.mkdir"),
    "a text pickle with code": (lambda folder: pickle.dumps(Hostile(), 0), "was refused: it refers to posix.mkdir"),
    "a file with code": (lambda folder: torch_bytes({"model": Hostile()}, folder), "refers to posix.mkdir"),
    "a pickled module": (lambda folder: torch_bytes(torch.nn.Linear(2, 2), folder), "refers to torch.nn.modules"),
}


@reading
@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_checkpoint_is_named_as_that(read, kind, tmp_path, monkeypatch):
    make, said = FILES[kind]
    if read is load_quickstart:
        said = "is no quickstart file, or damaged"
    (tmp_path / "model.pt").write_bytes(make(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DamagedFileError, match=said) as raised:
        read(tmp_path / "model.pt")
    message = str(raised.value)
    assert "model.pt" in message and "\n" not in message
    assert not re.search("weights_only|allowlist|safe_globals|trust", message)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("load_world_model", "load_quickstart")])
def test_a_folder_is_named_as_that(name, tmp_path):
    with pytest.raises(DamagedFileError, match="it is a folder; name the file in it"):
        READERS[name](tmp_path)


@reading
def test_a_missing_file_is_named(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?i)no (checkpoint|quickstart) (at|in) .*model\.pt"):
        read(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": None}, r'found \{"model": NoneType\}'),
        ({"model": [1]}, r'found \{"model": list\}'),
        ({}, "found none|found dict"),
        ([torch.zeros(2)], "found list"),
        (torch.zeros(2), "found Tensor"),
        ({"model": {"weight": 3}}, r"unknown keys \['weight'\]"),
        ({0: torch.zeros(2)}, "found dict"),
    ],
)
@pytest.mark.parametrize("name", ["PWMWorldModel.from_tdmpc2", "TDMPC2Model.from_checkpoint", "load_world_model"])
def test_a_file_without_weights_says_what_it_holds(name, content, said, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=said) as raised:
        READERS[name](tmp_path / "model.pt")
    assert "\n" not in str(raised.value)


def test_no_file_of_tensors_is_read_in_another_way():
    """``torch.load`` stands in one place, which says what a file is that is none."""
    root = functools.reduce(os.path.join, (os.path.dirname(__file__), "..", "..", "torchrl_pwm"))
    calls = [
        os.path.basename(file)
        for folder, _, files in os.walk(root)
        for file in (os.path.join(folder, name) for name in files if name.endswith(".py"))
        for line in Path(file).read_text().splitlines()
        if re.search(r"torch\.load\([^`]*$", line) and "``" not in line and ">>>" not in line
    ]
    assert calls == ["tensors.py"]
