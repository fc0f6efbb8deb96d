"""Files whose bytes changed on their way: they are refused, or give what was written, and nothing is run."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings

from tests.attacks.changes import CHANGES, changed
from tests.attacks.files import KINDS, exact
from tests.attacks.guard import guarded
from torchrl_pwm import DamagedFileError

pytest.importorskip("hydra")
pytest.importorskip("h5py")


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The path of each kind's file, its bytes, and what is read of it."""
    made = {}

    def get(kind):
        if kind not in made:
            path = KINDS[kind].write(tmp_path_factory.mktemp("written"))
            made[kind] = path, path.read_bytes(), exact(KINDS[kind].read(path))
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_refused_or_gives_what_was_written(kind, written, record_property):
    path, whole, expected = written(kind)
    _, read, checked, also, seal = KINDS[kind]
    noticed, tried = [], 0

    # Where a run is read, most of the time goes into all that is beside the file.
    fewer = 4 if kind.endswith("of a run") else 1

    @settings(max_examples=settings().max_examples // fewer)
    @given(CHANGES)
    def attack(changes):
        nonlocal tried
        tried += 1
        data = changed(whole, changes)
        path.write_bytes(data)
        seal(path)
        try:
            with guarded(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = exact(read(path))
        except (DamagedFileError, *also):
            noticed.append(data)
            assert data != whole
        else:
            assert not checked or found == expected

    try:
        attack()
    finally:
        path.write_bytes(whole)
        seal(path)
    record_property("tries", tried)
    assert noticed or not checked
    assert exact(read(path)) == expected
