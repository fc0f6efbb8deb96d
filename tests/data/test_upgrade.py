"""Data sets of format version 1, which had a file of each field, are written anew without a change of their values."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from tests.data.counting import write_counting_store
from torchrl_pwm.data import EpisodeStore, EpisodeStoreWriter, TDMPC2ExperienceReplay, upgrade_dataset
from torchrl_pwm.data.store.manifest import record_checksum


def write_old(store, root):
    """What format version 1 made of the rows of ``store``."""
    root.mkdir()
    record = json.loads((store.root / "manifest.json").read_text())
    record.update(version=1, fields={})
    for name in ("observation", "action", "reward", "success"):
        array = getattr(store, name)
        if array is not None:
            content = np.ascontiguousarray(array).tobytes()
            (root / f"{name}.bin").write_bytes(content)
            record["fields"][name] = {
                "file": f"{name}.bin",
                "dtype": str(array.dtype),
                "shape": array.shape,
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
            }
    record["sha256"] = record_checksum(record)
    (root / "manifest.json").write_text(json.dumps(record))
    return root


@pytest.fixture(params=["float32", "float16", "collected"])
def store(request, tmp_path):
    if request.param != "collected":
        return EpisodeStore(write_counting_store(tmp_path / "present", dtype=request.param))
    draws = np.random.default_rng(0)
    rows = {"walker-run": 10, "mw-reach": 3}
    with EpisodeStoreWriter(
        tmp_path / "present", "mt80", rows, row_length=100, success=True, whole_episodes=True, source={"kind": "test"}
    ) as writer:
        for task, count in rows.items():
            numbers = draws.standard_normal((count, 101, 46)).astype(np.float32)
            success = draws.random((count, 100)) > 0.5
            writer.write(task, numbers[..., :39], numbers[:, 1:, 39:45], numbers[:, 1:, 45], success)
    return EpisodeStore(tmp_path / "present")


def test_an_old_data_set_is_written_anew_to_the_same_bytes(store, tmp_path, monkeypatch):
    monkeypatch.setattr("torchrl_pwm.data.upgrade._ROWS_AT_ONCE", 2)
    old = write_old(store, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    upgraded = upgrade_dataset(old, tmp_path / "new", progress=False)
    assert upgraded.digest == store.digest
    for path in store.root.iterdir():
        assert (upgraded.root / path.name).read_bytes() == path.read_bytes()
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_an_old_data_set_says_how_to_write_it_anew(counting_root, tmp_path):
    old = write_old(EpisodeStore(counting_root), tmp_path / "old")
    with pytest.raises(ValueError, match=r"format version 1, .* anew with torchrl_pwm\.data\.upgrade_dataset\('.*old'"):
        TDMPC2ExperienceReplay(old, 4, slice_len=5)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda old: _flip(old / "action.bin"), ValueError, r"action\.bin has sha256 .* changed after it was written"),
        (lambda old: (old / "reward.bin").unlink(), FileNotFoundError, r"reward\.bin"),
        (lambda old: (old / "manifest.json").unlink(), FileNotFoundError, r"manifest\.json"),
        (
            lambda old: _edit(old, source={"kind": "other"}),
            ValueError,
            "does not have the checksum that it holds itself",
        ),
        (lambda old: _edit(old, sha256=None, fields={}), ValueError, "lacks or misnames an entry"),
        (lambda old: _edit(old, version=3), ValueError, "is no manifest of .* version 1, found .* version 3"),
    ],
)
def test_a_damaged_old_data_set_is_refused_and_nothing_is_left(counting_root, tmp_path, damage, error, message):
    old = write_old(EpisodeStore(counting_root), tmp_path / "old")
    damage(old)
    with pytest.raises(error, match=message):
        upgrade_dataset(old, tmp_path / "new", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counting", "old"]


def _edit(old, **changes):
    path = old / "manifest.json"
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def test_a_present_data_set_and_a_full_target_are_refused(counting_root, tmp_path):
    with pytest.raises(ValueError, match=r"is no manifest of .* version 1, found .* version 2"):
        upgrade_dataset(counting_root, tmp_path / "new")
    with pytest.raises(FileExistsError, match="exists already"):
        upgrade_dataset(counting_root, counting_root)
