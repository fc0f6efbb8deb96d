"""Errors of files that cannot be trusted, and messages of errors for use in others."""

from __future__ import annotations


class DamagedFileError(ValueError):
    """A file is not what it should be: cut short, of another kind, or with code in it. The message says which.

    Examples:
        >>> import tempfile
        >>> from torchrl_pwm import PWMWorldModel
        >>> with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        ...     try:
        ...         PWMWorldModel.from_tdmpc2(file.name)
        ...     except DamagedFileError as error:
        ...         print(str(error).split(": ")[1])
        it is empty; download or copy it again
    """


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its type."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
