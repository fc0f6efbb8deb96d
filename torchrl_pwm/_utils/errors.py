"""Messages of errors, for use in others."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its type."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
