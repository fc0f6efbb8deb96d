"""HDF5 files: arrays of numbers that are in the file itself, and no larger than it can hold."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_pwm._utils.door.archives import Broken
from torchrl_pwm._utils.door.kinds import ordinary_file
from torchrl_pwm._utils.errors import DamagedFileError, first_line
from torchrl_pwm._utils.extras import require

# Of a compressed file: recordings shrink by a few times, flags of which few are set by some hundred.
_GROWTH = 20
_FREELY = 128 << 20


def read_hdf5(
    path: str | os.PathLike[str], names: Sequence[str], *, optional: Sequence[str] = (), purpose: str
) -> dict[str, np.ndarray]:
    """Arrays of an HDF5 file, read into memory.

    Args:
        path: the file.
        names: the arrays that it must have.

    Keyword Args:
        optional: those that it may have.
        purpose: what needs it, for messages.

    Raises:
        ImportError: if h5py is not installed.
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no HDF5 file, or damaged; if an array is larger than the file can hold, is in another
            file, or is none of numbers.
        ValueError: if it lacks an array.
    """
    h5py = require("h5py", extra="datasets", purpose=purpose)
    path = ordinary_file(path, "HDF5 file")
    with _opened(h5py, path) as file:
        missing, found = [name for name in names if name not in file.keys()], sorted(file.keys())  # noqa: SIM118
        if not missing:
            chosen = [*names, *(name for name in optional if name in file.keys())]  # noqa: SIM118
            return dict(_arrays(h5py, file, chosen, path.stat().st_size))
    raise ValueError(f"{path} lacks {missing}; expected {list(names)}, found {found[:12]}")


def check_hdf5(path: str | os.PathLike[str], *, purpose: str) -> None:
    """Refuses an HDF5 file, which another package is to read, that refers to other files or promises more than it has.

    Raises:
        ImportError, FileNotFoundError, DamagedFileError: as :func:`read_hdf5`.
    """
    h5py = require("h5py", extra="datasets", purpose=purpose)
    path = ordinary_file(path, "HDF5 file")
    with _opened(h5py, path) as file:
        size, total, left = path.stat().st_size, 0, [("", file)]
        seen = {file.id}
        while left:
            place, group = left.pop()
            for name in group.keys():  # noqa: SIM118, a group has no `in` of its own
                found = _linked(h5py, group, name, f"{place}/{name}")
                if isinstance(found, h5py.Dataset):
                    total += _size_of(found, f"{place}/{name}")
                    _refuse_growth(total, size, found, f"{place}/{name}")
                elif found.id not in seen:
                    seen.add(found.id)
                    left.append((f"{place}/{name}", found))


@contextlib.contextmanager
def _opened(h5py: Any, path: Path) -> Iterator[Any]:
    """The file, and what is amiss with it as an error that names it."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except Broken as error:
        raise DamagedFileError(f"{path} is no HDF5 file, or damaged: {error}; download it again") from error
    except PermissionError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise DamagedFileError(
            f"{path} is no HDF5 file, or damaged ({first_line(error)}); download it again"
        ) from error


def _arrays(h5py: Any, file: Any, names: Sequence[str], size: int) -> Iterator[tuple[str, np.ndarray]]:
    total = 0
    for name in names:
        array = _linked(h5py, file, name, name)
        if not isinstance(array, h5py.Dataset):
            raise Broken(f"{name} in it is no array")
        if array.dtype.kind not in "biuf" or not array.ndim:
            raise Broken(f"{name} in it is of type {array.dtype}, expected an array of numbers")
        total += _size_of(array, name)
        _refuse_growth(total, size, array, name)
    for name in names:
        yield name, np.asarray(file[name])


def _linked(h5py: Any, group: Any, name: str, place: str) -> Any:
    """What a name stands for, in the file itself."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise Broken(f"{place} in it is a link to somewhere else")
    return group[name]


def _size_of(array: Any, place: str) -> int:
    if array.is_virtual or array.external:
        raise Broken(f"{place} in it is an array in other files")
    return math.prod(array.shape or ()) * array.dtype.itemsize


def _refuse_growth(total: int, size: int, array: Any, place: str) -> None:
    if total > _GROWTH * size + _FREELY:
        raise Broken(f"{place} in it is of shape {list(array.shape)}, more than a file of {size} bytes holds")
