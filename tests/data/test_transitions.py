"""Memory-mapped folders of transitions are read without running what is in them."""

from __future__ import annotations

import os

import pytest
import torch
from tensordict import TensorDict

from torchrl_pwm import DamagedFileError
from torchrl_pwm.data import read_memmap


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TensorDict({"observation": torch.arange(24.0).view(2, 3, 4)}, [2, 3]).memmap(tmp_path / "steps")
    return tmp_path / "steps"


def test_what_was_written_is_read(folder):
    assert read_memmap(folder)["observation"].flatten().tolist() == list(range(24))


def test_a_pickle_in_the_folder_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = TensorDict({"observation": torch.zeros(2, 3, 4)}, [2, 3])
    steps.set_non_tensor("note", Hostile())
    steps.memmap(tmp_path / "steps")
    if (tmp_path / "owned").exists():
        (tmp_path / "owned").rmdir()
    with pytest.raises(DamagedFileError, match="found pickled objects beside tensors, which can run any code"):
        read_memmap(tmp_path / "steps")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_folder_is_named(folder, text):
    (folder / "meta.json").write_text(text)
    with pytest.raises(DamagedFileError, match="steps is no folder of a memory-mapped TensorDict, or damaged"):
        read_memmap(folder)


def test_a_missing_tensor_is_named(folder):
    (folder / "observation.memmap").unlink()
    with pytest.raises((FileNotFoundError, DamagedFileError), match="observation"):
        read_memmap(folder)


def test_a_tensor_that_is_cut_short_is_named(folder):
    with open(folder / "observation.memmap", "r+b") as file:
        file.truncate(10)
    with pytest.raises(DamagedFileError, match=r"damaged: found observation\.memmap of 10 bytes, expected 96"):
        read_memmap(folder)
