"""Hostile HDF5 files, as D4RL's layout has them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.attacks.guard import refused
from torchrl_pwm import import_d4rl

h5py = pytest.importorskip("h5py")


def steps(file, **changed):
    arrays = {
        "observations": np.ones((9, 3)),
        "actions": np.zeros((9, 1)),
        "rewards": np.ones(9),
        "terminals": np.zeros(9),
    }
    for name, array in {**arrays, **changed}.items():
        if isinstance(array, dict):
            file.create_dataset(name, **array)
        else:
            file[name] = array


CHANGED = {
    "never written": {"observations": {"shape": (1 << 38, 3), "dtype": "f8"}},
    "compressed zeros": {"rewards": {"shape": (1 << 40,), "dtype": "f8", "chunks": (1 << 16,), "compression": "gzip"}},
    "in another file": {"rewards": {"shape": (1 << 10,), "dtype": "f8", "external": [("/etc/hostname", 0, 1 << 13)]}},
    "a link to another file": {"rewards": h5py.ExternalLink("/etc/hostname", "/x")},
    "a link to itself": {"rewards": h5py.SoftLink("/rewards")},
    "text": {"rewards": ["a"] * 9},
    "one number": {"rewards": 1.0},
}


@pytest.mark.parametrize("kind", CHANGED)
def test_an_array_that_is_not_in_the_file_is_refused(kind, tmp_path):
    with h5py.File(tmp_path / "steps.hdf5", "w") as file:
        steps(file, **CHANGED[kind])
    refused(lambda path: import_d4rl(path, tmp_path / "data", progress=False), tmp_path / "steps.hdf5")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("data", [b"", b"\x89HDF\r\n\x1a\n", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(5000)])
def test_what_is_no_hdf5_file_is_refused(data, tmp_path):
    (tmp_path / "steps.hdf5").write_bytes(data)
    refused(lambda path: import_d4rl(path, tmp_path / "data", progress=False), tmp_path / "steps.hdf5")
