"""The zip archives that ``torch.save`` writes: laid out as it does, and with the checksums that it wrote."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

_BLOCK = 1 << 20
_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
#: Bytes of the list of records, which is read as a whole: more than 100,000 tensors.
_LIST_LIMIT = 16 << 20
_RECORD_LIMIT = 64 << 20


class Broken(Exception):
    """A file contradicts itself, or claims more than it holds; the message says how, in the words of a sentence."""


class Archive(NamedTuple):
    """The pickled part of an archive, and the size of each record beside it."""

    pickled: bytes
    sizes: dict[str, int]


def read_archive(path: Path, *, verify: bool = True) -> Archive:
    """The pickled part of an archive of ``torch.save`` and the sizes of its storages, none of which is loaded.

    torch finds records in a way of its own, and compares none of the checksums. What could be read in two ways, such
    as two records of one name, is refused, so that what was checked here is what torch reads.

    Args:
        path: the file.
        verify: compare each record with its checksum (CRC-32), which reads the file once, a block at a time.

    Raises:
        Broken: if a checksum differs, or torch does not write such archives.
        zipfile.BadZipFile, OSError, ValueError: if it is no archive.
    """
    _check_end(path)
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        _check_records(records, path.stat().st_size)
        if verify:
            check_sums(archive)
        prefix = records[0].filename.partition("/")[0] + "/"
        sizes = {record.filename.removeprefix(prefix): record.file_size for record in records}
        if sizes.get("data.pkl", _RECORD_LIMIT + 1) > _RECORD_LIMIT:
            raise Broken(f"it has no record data.pkl of at most {_RECORD_LIMIT >> 20} MiB")
        return Archive(archive.read(f"{prefix}data.pkl"), sizes)


def check_sums(archive: zipfile.ZipFile) -> None:
    """Compares each record of an archive with its checksum.

    Raises:
        Broken: naming the first one that differs.
    """
    for record in archive.infolist():
        try:
            with archive.open(record) as content:
                while content.read(_BLOCK):
                    pass
        except zipfile.BadZipFile as error:
            if "CRC" not in str(error):
                raise
            raise Broken(
                f"the bytes of {record.filename} in it do not have the checksum that was written with them"
            ) from error


def _check_end(path: Path) -> None:
    """Checks that the list of records is where the last bytes of the file say, at the end and not too long.

    An archive that has something after it, or before it, is read in one way by Python and in another by torch.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - 98))
        tail = file.read(98)
    end = tail[-22:]
    if len(end) < 22 or end[:4] != _END:
        raise zipfile.BadZipFile("the end is missing")
    listed, start, comment = struct.unpack("<LLH", end[12:22])
    place = size - 22
    if tail[-42:-38] == _LOCATOR:
        if tail[-98:-94] != _END64:
            raise Broken("the end of it is not as torch writes it")
        place = size - 98
        listed64, start64 = struct.unpack("<QQ", tail[-58:-42])
        if (found := struct.unpack("<Q", tail[-34:-26])[0]) != place:
            raise Broken(f"the end of it is at byte {place}, where it says {found}")
        for short, long in ((listed, listed64), (start, start64)):
            if short not in (long, 0xFFFFFFFF):
                raise Broken("it has two lists of records")
        listed, start = listed64, start64
    if comment or start + listed != place:
        raise Broken("something was put before or after it")
    if listed > _LIST_LIMIT:
        raise Broken(f"its list of records has {listed >> 20} MiB, expected at most {_LIST_LIMIT >> 20}")


def _check_records(records: list[zipfile.ZipInfo], size: int) -> None:
    if not records or min(record.header_offset for record in records) != 0:
        raise Broken("it holds no records, or does not begin with one")
    names = {record.filename.lower() for record in records}
    if len(names) < len(records):
        raise Broken("it has several records of one name")
    prefixes = {record.filename.partition("/")[0] for record in records}
    if len(prefixes) > 1:
        raise Broken(f"its records are in several folders, {sorted(prefixes)[:3]}")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise Broken(f"its record {record.filename} is compressed, which torch never does")
        if record.flag_bits & 1:
            raise Broken(f"its record {record.filename} is encrypted")
    if (total := sum(record.file_size for record in records)) > size:
        raise Broken(f"its records have {total} bytes together, the file {size}")
