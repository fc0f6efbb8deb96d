"""A checkpoint is whole or refused, and runs no code."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

from tests.data.killed import run
from torchrl_pwm._utils import files as module
from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm.trainers import has_checkpoint, load_checkpoint, save_checkpoint

MANIFEST = "checkpoint.json"


def state(value: float) -> dict:
    return {
        "weight": torch.full((100,), value),
        "step": int(value),
        "nested": {"list": [1, None, "text"], "flag": True},
    }


def assert_loads(folder: Path, value: float) -> None:
    loaded = load_checkpoint(folder)
    torch.testing.assert_close(loaded["weight"], torch.full((100,), value), rtol=0, atol=0)
    assert {key: loaded[key] for key in ("step", "nested")} == {key: state(value)[key] for key in ("step", "nested")}


def data_file(folder: Path) -> Path:
    return folder / json.loads((folder / MANIFEST).read_text())["file"]


def test_what_was_saved_comes_back(tmp_path):
    folder = tmp_path / "deep" / "folder"
    assert not has_checkpoint(folder)
    path = save_checkpoint(folder, state(1), step=1)
    assert has_checkpoint(folder)
    assert path == data_file(folder)
    assert_loads(folder, 1)


def steps(folder: Path) -> list[int]:
    """Of the data files of a folder, which holds nothing else but the manifest."""
    names = {file.name for file in folder.iterdir()} - {MANIFEST}
    return sorted(int(name.split("-")[1]) for name in names)


def test_a_new_checkpoint_replaces_the_one_before_the_last_and_its_file(tmp_path):
    for value, kept in ((1, [1]), (2, [1, 2]), (2, [1, 2]), (3, [2, 3]), (4, [3, 4])):
        save_checkpoint(tmp_path, state(value), step=value)
        assert_loads(tmp_path, value)
        assert steps(tmp_path) == kept
    save_checkpoint(tmp_path, state(5), step=5, keep=1)
    assert steps(tmp_path) == [5]


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        os.truncate(path, 100)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ("missing", "cut short", "one byte"))
def test_where_the_newest_is_damaged_a_warning_names_it_and_the_one_before_is_read(how, tmp_path):
    for value in (1, 2):
        path = save_checkpoint(tmp_path, state(value), step=value)
    damage(path, how)
    with pytest.warns(UserWarning, match=rf"{path} is damaged.* the checkpoint of step 1"):
        assert_loads(tmp_path, 1)
    save_checkpoint(tmp_path, state(3), step=3)
    assert steps(tmp_path) == [1, 3], "one known to be damaged takes no place of a whole one"
    assert_loads(tmp_path, 3)


def test_where_all_are_damaged_the_newest_is_named(tmp_path):
    for value in (1, 2):
        path = save_checkpoint(tmp_path, state(value), step=value)
    for file in tmp_path.glob("*.pt"):
        damage(file, "one byte")
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        load_checkpoint(tmp_path)


def test_manifests_of_before_name_one_checkpoint(tmp_path):
    save_checkpoint(tmp_path, state(1), step=1)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({key: manifest[key] for key in ("file", "size", "sha256")}))
    assert_loads(tmp_path, 1)
    save_checkpoint(tmp_path, state(2), step=2)
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("step", (1, 2), ids=("same step", "later step"))
@pytest.mark.parametrize("call", ("open", "fsync", "replace"))
@pytest.mark.parametrize("occurrence", (1, 2))
def test_a_failure_at_any_write_leaves_the_old_checkpoint_in_force(call, occurrence, step, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, state(1), step=1)
    target = {"open": (module, "open", open), "fsync": (os, "fsync", os.fsync), "replace": (os, "replace", os.replace)}
    owner, name, original = target[call]
    # Each file is opened once, renamed once, and flushed twice: itself and its folder.
    fails_at = occurrence * 2 - 1 if call == "fsync" else occurrence
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == fails_at:
            raise OSError("disk full")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail, raising=False)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path, state(2), step=step)
    assert_loads(tmp_path, 1)
    assert not list(tmp_path.glob("*.tmp"))
    save_checkpoint(tmp_path, state(3), step=3)
    assert_loads(tmp_path, 3)
    assert steps(tmp_path) == [1, 3]


def test_what_cannot_be_saved_leaves_the_old_checkpoint_in_force(tmp_path):
    save_checkpoint(tmp_path, state(1), step=1)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        save_checkpoint(tmp_path, {**state(2), "function": lambda: None}, step=2)
    assert sorted(tmp_path.iterdir()) == before
    assert_loads(tmp_path, 1)


def test_the_manifest_states_size_and_checksum_of_the_file(tmp_path):
    path = save_checkpoint(tmp_path, state(1), step=4)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert path.name == f"checkpoint-4-{digest[:12]}.pt"
    assert json.loads((tmp_path / MANIFEST).read_text()) == {
        "file": path.name,
        "size": len(data),
        "sha256": digest,
        "step": 4,
        "earlier": [],
    }


FULL = """
import resource, sys, torch
from torchrl_pwm.trainers import save_checkpoint

save_checkpoint(sys.argv[1], {"weight": torch.ones(10)}, step=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for number in range(2):
    try:
        save_checkpoint(sys.argv[1], {"weights": [torch.ones(100_000) for _ in range(8)]}, step=2)
    except OSError as error:
        print(type(error).__name__, error.errno, error.filename)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_is_an_error_of_the_system_that_names_the_file_and_leaves_nothing(tmp_path):
    lines = run(FULL, tmp_path).stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        name, number, file = line.split()
        assert (name, int(number)) == ("OSError", errno.EFBIG) and Path(file).name.startswith(".checkpoint-2.pt")
    assert steps(tmp_path) == [1]
    torch.testing.assert_close(load_checkpoint(tmp_path)["weight"], torch.ones(10))


MEMORY = """
import sys, torch
from tests.data.killed import memory, restart_peak
from torchrl_pwm.trainers import save_checkpoint

save_checkpoint(sys.argv[1], {"weight": torch.zeros(10)}, step=1)
state = {"weight": torch.ones(16 << 20)}
before = restart_peak()
save_checkpoint(sys.argv[1], state, step=2)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_saving_holds_no_copy_of_the_tensors(tmp_path):
    """Of 64 MiB."""
    assert float(run(MEMORY, tmp_path).stdout) < 16


def test_tensors_in_a_file_are_replaced_in_one_step(tmp_path):
    path = tmp_path / "weights.pt"
    save_tensors(path, state(1))
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        save_tensors(path, {"function": lambda: None})
    assert list(tmp_path.iterdir()) == [path]
    assert (torch.load(path, weights_only=True)["weight"] == 1).all()


def test_what_killed_processes_left_is_cleaned_at_the_next_save(tmp_path):
    save_checkpoint(tmp_path, state(1), step=1)
    for name in ("checkpoint-7-0123456789ab.pt", "checkpoint-7-0123456789ab.pt.tmp", f"{MANIFEST}.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    assert_loads(tmp_path, 1)
    save_checkpoint(tmp_path, state(2), step=2)
    (tmp_path / "notes.txt").unlink()
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("jumps", [(0, 4e9), (4e9, 0), (4e9, 4e9)])
def test_a_clock_that_jumps_changes_nothing(jumps, tmp_path):
    for value, moment in zip((1, 2), jumps, strict=True):
        path = save_checkpoint(tmp_path, state(value), step=value)
        for file in (path, tmp_path / MANIFEST, tmp_path):
            os.utime(file, (moment, moment))
    assert_loads(tmp_path, 2)
    save_checkpoint(tmp_path, state(3), step=3)
    assert steps(tmp_path) == [2, 3]
    assert_loads(tmp_path, 3)


@pytest.mark.parametrize("place", (0.0, 0.3, 0.99))
def test_one_damaged_byte_is_refused(place, tmp_path):
    path = save_checkpoint(tmp_path, state(1), step=1)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("size", (0, 100))
def test_a_truncated_file_is_refused_with_both_sizes(size, tmp_path):
    path = save_checkpoint(tmp_path, state(1), step=1)
    whole = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match=rf"damaged: expected {whole} bytes .*found {size} bytes"):
        load_checkpoint(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    save_checkpoint(tmp_path, state(1), step=1).unlink()
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(tmp_path)


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=MANIFEST):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ("", "{", "[1]", '{"file": "a.pt"}', '{"file": "a", "size": "x", "sha256": ""}', "\xff")
)
def test_with_a_damaged_manifest_the_checkpoints_are_found_by_their_names(text, tmp_path):
    """Which hold the beginning of their checksum."""
    for value in (9, 10):
        save_checkpoint(tmp_path, state(value), step=value)
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match=r"manifest .* is damaged"):
        assert_loads(tmp_path, 10)
    for file in tmp_path.glob("*.pt"):
        damage(file, "one byte")
    with pytest.raises(ValueError, match=r"manifest .* is damaged"):
        load_checkpoint(tmp_path)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("how", ("torch", "pickle", "noise"))
def test_hostile_content_is_refused_and_not_run(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoint"
    path = save_checkpoint(folder, state(1), step=1)
    if how == "torch":
        torch.save({"weight": Hostile()}, path)
    else:
        path.write_bytes(pickle.dumps(Hostile()) if how == "pickle" else bytes(range(256)))
    data = path.read_bytes()
    manifest = {"file": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="refused"):
        load_checkpoint(folder)
    assert not (tmp_path / "owned").exists()


def test_a_manifest_does_not_lead_out_of_its_folder(tmp_path):
    outside = save_checkpoint(tmp_path / "other", state(5), step=5)
    save_checkpoint(tmp_path / "mine", state(1), step=1)
    manifest = json.loads((tmp_path / "other" / MANIFEST).read_text())
    manifest["file"] = f"../other/{outside.name}"
    (tmp_path / "mine" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(tmp_path / "mine")
