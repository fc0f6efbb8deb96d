"""Reading of files of tensors: checked before anything is built of them, and without running what they hold."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from torchrl_pwm._utils.door.archives import Broken, check_sums, read_archive
from torchrl_pwm._utils.door.kinds import PICKLE, ZIP, as_text, describe, first_bytes, making, ordinary_file
from torchrl_pwm._utils.door.pickles import Allowed, Foreign, check_legacy, read_claims
from torchrl_pwm._utils.errors import DamagedFileError

# Whatever torch, zipfile and the unpickler raise for bytes that are not what they expect.
_UNREADABLE = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error, pickle.UnpicklingError),
)
_HEADER_LIMIT = 16 << 20
# Two names, so that a file whose checksum lost its name is not taken for one that never had any.
_CHECKSUM = "sha256"
_MARKED = {_CHECKSUM: "", "checksum": _CHECKSUM}


def read_tensors(
    path: str | os.PathLike[str],
    *,
    what: str = "checkpoint",
    allowed: Allowed = (),
    mmap: bool = False,
    verify: bool = True,
    finite: bool = False,
) -> Any:
    """What ``torch.save`` wrote to a file, on the CPU: tensors, numbers, strings and containers of them.

    Before torch reads it, its pickled part is gone through with stand-ins: which names it refers to, and whether every
    tensor lies within its storage and every storage within the file. Files in torch's zip format are compared with the
    checksums inside them.

    Args:
        path: the file.

    Keyword Args:
        what: name of what is expected, for messages.
        allowed: stand-ins for classes and functions that the file may refer to beside tensors; nothing else is
            looked up.
        mmap: map the tensors from the file, where its form allows that.
        verify: compare the checksums; False where the caller has compared another.
        finite: refuse numbers that are not finite, as those of a network are.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no file of tensors, or damaged; the message says what it is.

    Examples:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/weights.pt"
        >>> torch.save({"weight": torch.ones(2)}, path)
        >>> read_tensors(path)
        {'weight': tensor([1., 1.])}
    """
    path = ordinary_file(path, what)
    try:
        zipped = first_bytes(path).startswith(ZIP)
        _check_claims(path, zipped, allowed, verify)
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols and classes to come, which the refusal tells better
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
    except Foreign as error:
        raise DamagedFileError(
            f"{path} was refused: it refers to {error}, but nothing except tensors, numbers and strings is read, since "
            "a pickled file can run any code; get it from its publisher as plain tensors"
        ) from None
    except Broken as error:
        raise DamagedFileError(_broken(path, what, error)) from error
    except PermissionError:
        raise
    except _UNREADABLE as error:
        raise DamagedFileError(f"{path} is no {what}: {describe(path)}") from error
    if finite:
        refuse_non_finite(contents, path)
    return contents


def load_weights(network: nn.Module, path: str | os.PathLike[str], *, what: str, part: str | None = None) -> None:
    """Gives a network the weights of a file of this package.

    Args:
        network: the network.
        path: the file.

    Keyword Args:
        what: name of what is expected, for messages.
        part: the entry of the file that holds the weights; None if it holds nothing else.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no file of tensors, or damaged, or of another network.
    """
    contents = read_tensors(path, what=what, finite=True)
    with making(what, path):
        network.load_state_dict(contents if part is None else contents[part])


def check_archive(path: str | os.PathLike[str], *, what: str) -> None:
    """Compares a file with the checksums inside it, which ``torch.save`` writes since version 1.6; older have none.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is cut short or one of its bytes was changed.
    """
    path = ordinary_file(path, what)
    if not first_bytes(path).startswith(ZIP):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            check_sums(archive)
    except Broken as error:
        raise DamagedFileError(_broken(path, what, error)) from error
    except _UNREADABLE as error:
        raise DamagedFileError(f"{path} is no {what}: {describe(path)}") from error


def read_safetensors(
    path: str | os.PathLike[str], *, what: str = "checkpoint", finite: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and the strings of its header.

    What :func:`pack_safetensors` wrote is compared with the checksum in its header.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no safetensors file, or damaged.
    """
    path = ordinary_file(path, what)
    try:
        _check_header(path)
        with safetensors.safe_open(path, "pt") as archive:
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
            strings = dict(archive.metadata() or {})
        if not strings.keys().isdisjoint(_MARKED) and strings.get(_CHECKSUM) != _digest(tensors, strings):
            raise Broken("it does not have the checksum that was written with it")
    except Broken as error:
        raise DamagedFileError(_broken(path, what, error)) from error
    except PermissionError:
        raise
    except (safetensors.SafetensorError, *_UNREADABLE) as error:
        raise DamagedFileError(f"{path} is no {what}: {describe(path)}") from error
    if finite:
        refuse_non_finite(tensors, path)
    return tensors, strings


def pack_safetensors(tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with a checksum in its header, which other readers take for one more string.

    Examples:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/model.safetensors"
        >>> _ = Path(path).write_bytes(pack_safetensors({"weight": torch.ones(2)}, {"format": "pt"}))
        >>> tensors, strings = read_safetensors(path)
        >>> tensors["weight"], strings["format"], len(strings["sha256"])
        (tensor([1., 1.]), 'pt', 64)
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    marked = {**strings, **_MARKED}
    return save(plain, {**marked, _CHECKSUM: _digest(plain, marked)})


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as safetensors files do: the length of a JSON header, and the header."""
    head = first_bytes(ordinary_file(path, "checkpoint"))
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def check_safetensors(path: str | os.PathLike[str], *, what: str) -> None:
    """Looks at a safetensors file's header, for readers that are not ours.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no safetensors file, or its header is larger than any that is read here.
    """
    path = ordinary_file(path, what)
    try:
        _check_header(path)
        with safetensors.safe_open(path, "pt"):
            pass
    except Broken as error:
        raise DamagedFileError(_broken(path, what, error)) from error
    except safetensors.SafetensorError as error:
        raise DamagedFileError(f"{path} is no {what}: {describe(path)}") from error


def _check_header(path: Path) -> None:
    length = int.from_bytes(first_bytes(path)[:8], "little")
    if is_safetensors(path) and length > _HEADER_LIMIT:
        raise Broken(f"its header has {length >> 20} MiB, expected at most {_HEADER_LIMIT >> 20}")


def refuse_non_finite(contents: Any, path: str | os.PathLike[str], name: str = "") -> None:
    """Refuses weights that are not finite, of which every result would be NaN.

    Raises:
        DamagedFileError: naming the first entry that holds such a number.
    """
    if isinstance(contents, Tensor):
        numbers = contents.float() if contents.is_floating_point() and contents.element_size() == 1 else contents
        if not numbers.isfinite().all():  # which 8 bits do not know themselves
            raise DamagedFileError(
                f"{path} holds numbers that are not finite in {name or 'its tensor'}: it is damaged, or of a training "
                "that had diverged; take another file, or train again"
            )
    elif isinstance(contents, (Mapping, Sequence)) and not isinstance(contents, (str, bytes)):
        for key, value in contents.items() if isinstance(contents, Mapping) else enumerate(contents):
            refuse_non_finite(value, path, f"{name}.{key}" if name else str(key))


def _check_claims(path: Path, zipped: bool, allowed: Allowed, verify: bool) -> None:
    size = path.stat().st_size
    if not zipped:
        with open(path, "rb") as file:
            check_legacy(file, size, allowed)
        return
    archive = read_archive(path, verify=verify)
    claims = read_claims(io.BytesIO(archive.pickled), len(archive.pickled), allowed)
    claims.check(size)
    for key, storage in claims.storages.items():
        if (found := archive.sizes.get(f"data/{key}")) != storage.nbytes:
            raise Broken(f"its storage {key[:20]} should have {storage.nbytes} bytes, but has {found}")


def _broken(path: Path, what: str, error: Broken) -> str:
    """What is said of a file that is of the right kind, if it is, and contradicts itself."""
    head = first_bytes(path)
    if not (head.startswith((ZIP, PICKLE)) or is_safetensors(path)) or as_text(head) is not None:
        return f"{path} is no {what}: {describe(path)}"
    return f"{path} is no {what}, or damaged: {error}; download or copy it again"


def _digest(tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> str:
    """Checksum of all that a file of tensors says, in one form whatever the order of its entries."""
    digest = hashlib.sha256()
    for part in _parts(tensors, {key: value for key, value in strings.items() if key != _CHECKSUM}):
        digest.update(part)
    return digest.hexdigest()


def _parts(tensors: Mapping[str, Tensor], strings: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    header = [[name, str(value.dtype), list(value.shape)] for name, value in sorted(tensors.items())]
    yield json.dumps([header, sorted(strings.items())]).encode()
    for _, value in sorted(tensors.items()):
        # numpy does not know every type of torch's
        yield np.ascontiguousarray(value.contiguous().reshape(-1).view(torch.uint8).numpy()).data
