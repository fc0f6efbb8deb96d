"""What happens to the bytes of a file: bits flip, it is cut, something gets into it."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st


class Flip(NamedTuple):
    """One bit is another."""

    place: int
    bit: int

    def __call__(self, data: bytearray) -> None:
        if data:
            data[self.place % len(data)] ^= 1 << self.bit


class Cut(NamedTuple):
    """The file ends earlier."""

    place: int

    def __call__(self, data: bytearray) -> None:
        if data:
            del data[self.place % len(data) :]


class Insert(NamedTuple):
    """Bytes stand where there were none."""

    place: int
    added: bytes

    def __call__(self, data: bytearray) -> None:
        place = self.place % (len(data) + 1)
        data[place:place] = self.added


# Counted from the beginning, or from the end, where formats say what is between; the last kind is anywhere.
_PLACES = st.one_of(st.integers(-256, 255), st.integers(0, (1 << 32) - 1))
_CHANGE = st.one_of(
    st.builds(Flip, _PLACES, st.integers(0, 7)),
    st.builds(Cut, _PLACES),
    st.builds(Insert, _PLACES, st.binary(min_size=1, max_size=9)),
)
#: One change, or a few.
CHANGES = st.lists(_CHANGE, min_size=1, max_size=3)


def changed(whole: bytes, changes: list[Flip | Cut | Insert]) -> bytes:
    """The bytes of a file after changes, one after the other."""
    data = bytearray(whole)
    for change in changes:
        change(data)
    return bytes(data)
