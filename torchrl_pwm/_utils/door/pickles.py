"""The pickled part of a file of tensors, gone through with stand-ins: what it would build, before it is built."""

from __future__ import annotations

import _compat_pickle
import codecs
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import torch

from torchrl_pwm._utils.door.archives import Broken

#: What may be rebuilt beside tensors: a stand-in, and the pickled name that it stands in for.
Allowed = Sequence[tuple[Callable[..., Any], str]]

_ITEM_SIZES = {
    **dict.fromkeys(("Byte", "Char", "Bool"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
# A tensor may show its storage more than once, as an expanded one does; a few bytes must not become terabytes when
# somebody copies it.
_SHOWN_MORE = 4
_SHOWN_FREELY = 64 << 20
# Of a pickle: its bytes, its steps (each may make an object of some hundred bytes), and how deep containers are nested.
_PICKLE_LIMIT = 16 << 20
_STEP_LIMIT = 1_000_000
_DEPTH_LIMIT = 64
_ENTRIES_LIMIT = 10_000_000
# These make room for as many bytes as they please, look names up elsewhere, or take anything for a key; torch never
# writes them.
_REFUSED_OPCODES = (
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.DICT, pickle.ADDITEMS, pickle.FROZENSET),
)
#: The unpickler in Python, of which every step can be replaced.
_Unpickler: Any = pickle._Unpickler
_PLAIN = (str, bytes, int, float, bool, type(None))


class Foreign(Exception):
    """A pickle refers to a name that is none of tensors; the message is the name."""


class Storage(NamedTuple):
    """Bytes of a storage, and of each of its entries."""

    nbytes: int
    itemsize: int


class Claims:
    """What a pickle says that it holds.

    Attributes:
        storages: size of each storage, by its key.
        shown: bytes of all tensors together, as if each had a storage of its own.
        contents: the pickle's contents, with stand-ins for tensors.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self.shown = 0
        self.contents: Any = None

    def check(self, size: int) -> None:
        """Compares what is shown with the bytes of a file."""
        limit = _SHOWN_MORE * size + _SHOWN_FREELY
        if self.shown > limit:
            raise Broken(f"its tensors show {self.shown} bytes, the file has {size}")


class _StorageType(NamedTuple):
    itemsize: int


class _Tensor:
    """Stands in for a tensor; its attributes are those that a pickle gives it."""


class _Opaque(NamedTuple):
    """Stands in for a class that may be named, and not called."""

    name: str


class _Ordered(OrderedDict[Any, Any]):
    """Stands in for an ordered dictionary, whose keys are plain."""

    def __init__(self, pairs: Any = ()) -> None:
        if type(pairs) not in (list, tuple) or any(type(pair) not in (list, tuple) for pair in pairs):
            raise Broken("it has a dictionary of something else than pairs")
        _refuse_deep([pair[0] for pair in pairs])
        super().__init__(pairs)


class _Reader(_Unpickler):
    """Python's own unpickler, with stand-ins in place of everything that a name could lead to."""

    dispatch = {  # noqa: RUF012
        code: handler
        for code, handler in _Unpickler.dispatch.items()
        if code not in {opcode[0] for opcode in _REFUSED_OPCODES}
    }

    def __init__(self, file: _Bounded, allowed: Allowed, claims: Claims) -> None:
        super().__init__(file, encoding="utf-8")
        self.claims = claims
        self._names: dict[str, Any] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "torch._tensor._rebuild_from_type_v2": self._of_type,
            "torch.storage.UntypedStorage": _StorageType(1),
            "torch.Tensor": _Opaque("Tensor"),
            "torch.nn.parameter.Parameter": _Opaque("Parameter"),
            "torch.Size": torch.Size,
            "torch.device": _device,
            "collections.OrderedDict": _Ordered,
            "builtins.set": _set,
            "builtins.complex": complex,
            "_codecs.encode": _encode,
            **{f"torch.{name}Storage": _StorageType(size) for name, size in _ITEM_SIZES.items()},
            **{name: _Ordered if stand_in is OrderedDict else stand_in for stand_in, name in allowed},
        }

    def load_setitem(self) -> None:
        _refuse_deep(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _refuse_deep(self.stack[::2])
        super().load_setitems()

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _compat_pickle.NAME_MAPPING:
            module, name = _compat_pickle.NAME_MAPPING[module, name]
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        path = f"{module}.{name}"
        if path in self._names:
            return self._names[path]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if not re.fullmatch(r"[\w.]+", path):
            raise Broken("it names something that is no name")
        raise Foreign(path.removeprefix("builtins."))

    def persistent_load(self, pid: Any) -> Storage:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise Broken("it refers to a storage in a way that torch does not")
        kind, key, location, count = pid[1:5]
        if type(kind) is not _StorageType or type(key) is not str or type(location) is not str or not _is_size(count):
            raise Broken("it refers to a storage in a way that torch does not")
        storage = Storage(count * kind.itemsize, kind.itemsize)
        if self.claims.storages.setdefault(key, storage) != storage:
            raise Broken(f"it gives its storage {key[:20]} two sizes")
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
        if type(storage) is not Storage:
            raise Broken("it has a tensor without a storage")
        return self._shown(storage, storage.itemsize, offset, size, stride)

    def _typed_tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
    ) -> _Tensor:
        if type(storage) is not Storage or not isinstance(dtype, torch.dtype):
            raise Broken("it has a tensor without a storage or a type")
        return self._shown(storage, dtype.itemsize, offset, size, stride)

    def _shown(self, storage: Storage, itemsize: int, offset: Any, size: Any, stride: Any) -> _Tensor:
        """A tensor, if it lies within its storage, which torch would else enlarge."""
        sizes = (offset, *size, *stride) if type(size) is type(stride) is tuple else (None,)
        if not all(map(_is_size, sizes)) or len(size) != len(stride) or len(size) > _DEPTH_LIMIT:
            raise Broken("it has a tensor whose shape is none")
        count = 1
        for length in size:
            count *= length
        end = offset + sum((length - 1) * step for length, step in zip(size, stride)) + 1 if count else offset
        if end * itemsize > storage.nbytes:
            raise Broken(
                f"a tensor of shape {_short(size)} in it needs {end * itemsize} bytes, its storage has {storage.nbytes}"
            )
        self.claims.shown += count * itemsize
        return _Tensor()

    def _parameter(self, tensor: Any, *rest: Any) -> _Tensor:
        if type(tensor) is not _Tensor:
            raise Broken("it has a parameter without a tensor")
        return tensor

    def _of_type(self, function: Any, kind: Any, arguments: Any, state: Any) -> _Tensor:
        if function not in (self._tensor, self._typed_tensor, self._parameter) or type(kind) is not _Opaque:
            raise Broken("it has a tensor of a type of its own")
        return function(*arguments)


class _Bounded:
    """A file that is read to its end and no further, whatever length is asked for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left, self._steps = file, size, 0

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._left:
            raise EOFError
        self._left -= count
        self._steps += count == 1
        if self._steps > _STEP_LIMIT:
            raise Broken(f"its pickle has more than {_STEP_LIMIT:,} steps")
        return self._file.read(count)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readline(self) -> bytes:
        line = self._file.readline(min(self._left, 1 << 16))
        self._left -= len(line)
        return line


def read_claims(file: BinaryIO, size: int, allowed: Allowed = ()) -> Claims:
    """What the pickle at the place of an open file says that it holds; nothing that it names is looked up.

    Args:
        file: the file.
        size: bytes that are left in it.
        allowed: see :func:`~torchrl_pwm._utils.door.read_tensors`.

    Raises:
        Foreign: if it names anything else.
        Broken: if a tensor is not within its storage, or containers are too deep or too many.
        Exception: what the unpickler raises for bytes that are no pickle.
    """
    claims = Claims()
    claims.contents = _Reader(_Bounded(file, min(size, _PICKLE_LIMIT)), allowed, claims).load()
    _measure(claims.contents, 0, {})
    return claims


def check_legacy(file: BinaryIO, size: int, allowed: Allowed = ()) -> None:
    """Checks a file as torch wrote it before version 1.6: several pickles, and the storages after them.

    Raises:
        As :func:`read_claims`.
    """
    read = [read_claims(file, size, allowed) for _ in range(3)]
    if read[0].contents != torch.serialization.MAGIC_NUMBER:
        raise Broken("it is a pickle of something else")
    claims = read_claims(file, size, allowed)
    keys = read_claims(file, size).contents
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(claims.storages):
        raise Broken("it lists other storages than it refers to")
    claims.check(size)
    for key in keys:
        nbytes, itemsize = claims.storages[key]
        found = int.from_bytes(file.read(8), "little") * itemsize
        if file.seek(nbytes, 1) > size:
            raise EOFError
        if found != nbytes:
            raise Broken(f"its storage {key[:20]} should have {nbytes} bytes, but has {found}")
    if file.tell() != size:
        raise Broken(f"{size - file.tell()} bytes follow after its last storage")


def _measure(value: Any, depth: int, seen: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Entries that a walk through containers meets, where each may be met many times, and how deep they are nested."""
    if isinstance(value, Mapping):
        parts = [*value.values(), *(vars(value).values() if isinstance(value, OrderedDict) else ())]
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    else:
        parts = [] if isinstance(value, type) else list(getattr(value, "__dict__", {}).values())
    entries, height = seen.get(id(value), (1, 0))
    if depth + height > _DEPTH_LIMIT:
        raise Broken(f"its containers are nested more than {_DEPTH_LIMIT} deep, or hold themselves")
    if parts and id(value) not in seen:
        for part in parts:
            more, below = _measure(part, depth + 1, seen)
            entries, height = entries + more, max(height, below + 1)
        seen[id(value)] = entries, height
        if entries > _ENTRIES_LIMIT:
            raise Broken(f"its containers hold more than {_ENTRIES_LIMIT:,} entries")
    return entries, height


def _refuse_deep(keys: Sequence[Any]) -> None:
    """Refuses keys whose hash Python would follow as deep as they are nested, and out of its stack."""
    for key in keys:
        parts = key if type(key) in (tuple, torch.Size) else (key,)
        if any(type(part) not in _PLAIN for part in parts):
            raise Broken("it has a dictionary or set whose keys are no strings, numbers or tuples of them")


def _set(items: Any = ()) -> set[Any]:
    if type(items) is not list:
        raise Broken("it has a set of something else than a list")
    _refuse_deep(items)
    return set(items)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _device(*arguments: Any) -> str:
    return "device"


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # others decompress
        raise Broken("it has bytes in another encoding than those of pickles")
    return codecs.encode(text, encoding)


def _short(size: tuple[int, ...]) -> str:
    return str(list(size[:6]))
