"""Hostile files of tensors, made byte by byte: torch's zip format, the older one, and safetensors."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

import torch

MAGIC = 0x1950A86A20F9469CFC6C


class Storage(NamedTuple):
    """A storage as a pickle refers to it."""

    key: str
    count: Any


class Rebuilt:
    """A tensor as a pickle has it, of any shape."""

    def __init__(self, count, size, stride=None, offset=0, key="0"):
        stride = tuple(stride if stride is not None else [1] * len(size))
        self.arguments = (Holder(key, count), offset, tuple(size), stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Holder:
    def __init__(self, key, count):
        self.storage = Storage(key, count)


class Called:
    """A call as a pickle has it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class _Pickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, value):
        if not isinstance(value, Holder):
            return None
        rest = (None,) if self.legacy else ()
        return ("storage", torch.FloatStorage, value.storage.key, "cpu", value.storage.count, *rest)


def dumps(content, *, legacy=False) -> bytes:
    file = io.BytesIO()
    pickler = _Pickler(file, 2)
    pickler.legacy = legacy
    pickler.dump(content)
    return file.getvalue()


def archive(pickled: bytes, storages=None, *, compression=zipfile.ZIP_STORED, prefix="a", further=()) -> bytes:
    """A file in torch's zip format, of a pickled part that may say anything."""
    file = io.BytesIO()
    records = [("data.pkl", pickled), ("byteorder", b"little")]
    records += [(f"data/{key}", data) for key, data in (storages or {"0": bytes(16)}).items()]
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, data in [*records, ("version", b"3\n"), *further]:
            zipped.writestr(f"{prefix}/{name}", data)
    return file.getvalue()


def zipped(content, storages=None, **options) -> bytes:
    return archive(dumps(content), storages, **options)


FOUR = struct.pack("<q", 4) + bytes(16)


def legacy(content, keys=("0",), data=FOUR) -> bytes:
    """A file as torch wrote it before version 1.6."""
    head = [dumps(MAGIC), dumps(1001), dumps({"protocol_version": 1001, "little_endian": True})]
    return b"".join([*head, dumps(content, legacy=True), dumps(list(keys)), data])


def safetensors(header: bytes, data=b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _state(tensor) -> dict[str, Any]:
    return {"model": OrderedDict({"_encoder.0.weight": tensor})}


def _nested(depth: int, begin: bytes, step: bytes, end: bytes = b".") -> bytes:
    return b"\x80\x02" + begin + step * depth + end


def _doubled(times: int):
    content: list = []
    for _ in range(times):
        content = [content, content]
    return {"model": content}


BIG = 1 << 40
#: These take a while, and are refused before readers differ.
SLOW = ("a pickle of many steps", "a header of 90 MB", "a pickle with a deep key", "a pickle of tuples in tuples")
FILES = {
    "nothing": b"",
    "a pickle with code": pickle.dumps(Called(os.mkdir, "owned"), 2),
    "a text pickle with code": pickle.dumps(Called(os.mkdir, "owned"), 0),
    "a pickle with code of protocol 4": pickle.dumps(Called(os.mkdir, "owned"), 4),
    "an archive with code": zipped(_state(Called(os.mkdir, "owned"))),
    "an archive with code beside tensors": zipped({**_state(Rebuilt(4, [4])), "x": Called(eval, "1")}),
    "an older file with code": legacy(_state(Called(os.mkdir, "owned"))),
    "a storage beyond its record": zipped(_state(Rebuilt(BIG, [BIG]))),
    "a storage a little beyond its record": zipped(_state(Rebuilt(5, [5]))),
    "an older storage beyond its file": legacy(_state(Rebuilt(BIG, [BIG])), data=struct.pack("<q", BIG) + bytes(16)),
    "an older storage of two sizes": legacy(_state(Rebuilt(1 << 33, [4]))),
    "a tensor beyond its storage": zipped(_state(Rebuilt(4, [BIG]))),
    "an older tensor beyond its storage": legacy(_state(Rebuilt(4, [BIG]))),
    "a tensor that begins beyond its storage": zipped(_state(Rebuilt(4, [4], offset=1 << 33))),
    "a tensor without strides": zipped(_state(Rebuilt(4, [1 << 20, 1 << 20], [0, 0]))),
    "an older tensor without strides": legacy(_state(Rebuilt(4, [1 << 20, 1 << 20], [0, 0]))),
    "a tensor of negative strides": zipped(_state(Rebuilt(4, [4], [-1]))),
    "a tensor of negative size": zipped(_state(Rebuilt(4, [-4]))),
    "a tensor of true size": zipped(_state(Rebuilt(4, [True]))),
    "a tensor of huge numbers": zipped(_state(Rebuilt(4, [10**30, 0], [10**30, 1]))),
    "a storage whose size is text": zipped(_state(Rebuilt("4", [4]))),
    "a storage of two sizes": zipped({"a": Rebuilt(4, [4]), "b": Rebuilt(BIG, [4])}),
    "a storage that is not there": zipped(_state(Rebuilt(4, [4], key="7"))),
    "a storage outside": zipped(_state(Rebuilt(4, [4], key="../data.pkl"))),
    "room for a terabyte of bytes": zipped(_state(Called(bytearray, BIG))),
    "a new tensor of a terabyte": zipped(_state(Called(torch.Tensor, BIG))),
    "a parameter of no tensor": zipped(_state(Called(torch._utils._rebuild_parameter, BIG, True, OrderedDict()))),
    "a compressed archive": zipped(_state(Rebuilt(1 << 28, [1 << 28])), {"0": bytes(1 << 20)}, compression=8),
    "two records of one name": zipped(
        _state(Rebuilt(4, [4])), further=[("DATA.PKL", dumps(Called(os.mkdir, "owned")))]
    ),
    "an archive after something": bytes(100) + zipped(_state(Rebuilt(4, [4]))),
    "an archive before something": zipped(_state(Rebuilt(4, [4]))) + bytes(100),
    "an archive without a pickle": archive(b""),
    "an archive of nothing": b"PK\x05\x06" + bytes(18),
    "a pickle of lists in lists": archive(_nested(5_000, b"", b"]", b"a" * 4_999 + b".")),
    "a pickle of tuples in tuples": archive(_nested(50_000, b")", b"\x85")),
    "a pickle with a deep key": archive(_nested(100_000, b"})", b"\x85", b"Ns.")),
    "a pickle of many steps": archive(_nested(1_100_000, b"", b"]")),
    "a list in itself": archive(b"\x80\x02]q\x00h\x00a."),
    "lists that double": zipped(_doubled(60)),
    "text": b"Not Found\n",
    "a web page": b"<!DOCTYPE html><html></html>",
    "noise": bytes(range(256)),
    "nothing but zeros": bytes(1 << 20),
    "no model": zipped({"model": None}),
    "a list": zipped([1, 2]),
    "a number": zipped(3),
    "tensors of no model": zipped({"model": {3: Rebuilt(4, [4])}}),
    "a long version": zipped(_state(Rebuilt(4, [4])), further=[("..", b"9" * 10_000)]),
    "a header of 8 GB": struct.pack("<Q", 1 << 33) + b"{",
    "a header of 90 MB": safetensors(b'{"a":1}' + b" " * 90_000_000),
    "a safetensors file of a terabyte": safetensors(
        json.dumps({"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    ),
    "a safetensors file cut short": safetensors(
        json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode(), bytes(8)
    ),
    "a deep safetensors header": safetensors(b'{"a":' * 100_000),
}
