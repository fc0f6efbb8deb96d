"""Damaged and hostile Minari data sets."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("minari")
pytest.importorskip("h5py")

import h5py

from tests.attacks.guard import refused
from tests.data.minari_sets import record_minari
from torchrl_pwm import import_minari

NAME = "pendulum/hostile-v0"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """The folder of a Minari data set that is in order."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    record_minari("Pendulum-v1", NAME, lambda observation, draws: draws.uniform(-2, 2, 1), episodes=2, steps=5)
    return tmp_path / "minari" / NAME / "data"


def read(path):
    import_minari(NAME, path.parent / "converted", progress=False)


CHANGES = {
    "in another file": {"rewards": {"shape": (5,), "dtype": "f8", "external": [("/etc/hostname", 0, 40)]}},
    "a link to another file": {"observations": h5py.ExternalLink("/etc/hostname", "/x")},
    "a link to itself": {"actions": h5py.SoftLink("/episode_1/actions")},
    "more than there is": {"observations": {"shape": (1 << 38, 3), "dtype": "f8"}},
    "a number": {"rewards": 1.0},
    "missing": {"terminations": None},
    "a group": {"rewards": {}},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_hostile_data_set_is_refused(kind, recorded):
    change(recorded, **CHANGES[kind])
    refused(read, recorded)
    assert not (recorded.parent / "converted").exists()


WRONG = {
    "type": {"rewards": np.array([b"a"] * 5)},
    "lengths": {"rewards": np.ones(3)},
    "size": {"observations": np.ones((6, 7), np.float32)},
    "value": {"rewards": np.full(5, np.nan)},
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_episode_of_other_steps_is_named(kind, recorded):
    change(recorded, **WRONG[kind])
    with pytest.raises(ValueError, match=r"episode 1|NaN|finite"):
        read(recorded)


def change(recorded, **values):
    """Puts others in place of arrays of the last episode; None for none at all."""
    with h5py.File(recorded / "main_data.hdf5", "a") as file:
        episode = file["episode_1"]
        for name, value in values.items():
            del episode[name]
            if isinstance(value, dict):
                episode.create_dataset(name, **value) if value else episode.create_group(name)
            elif value is not None:
                episode[name] = value


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_data_set_that_is_cut_short_is_refused(name, share, recorded):
    file = recorded / name
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    refused(read, recorded)


@pytest.mark.parametrize("text", ["[]", "{}", "[" * 100_000, '{"observation_space": 3}'])
def test_metadata_of_another_kind_are_refused(text, recorded):
    (recorded / "metadata.json").write_text(text)
    refused(read, recorded)


def test_a_data_set_in_order_is_converted(recorded):
    read(recorded)
    assert (recorded.parent / "converted" / "manifest.json").exists()
