"""TensorDicts that others pickled: their tensors are taken out, and no code is run."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

from torchrl_pwm._utils.door import read_tensors
from torchrl_pwm._utils.errors import DamagedFileError


class _Contents:
    """Stands in for a pickled TensorDict: keeps its state and runs nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _contents(cls: Any, state: Any) -> _Contents:
    """Stands in for the function that rebuilds a TensorDict."""
    contents = _Contents()
    contents.state = state
    return contents


# Names that a pickled TensorDict of any release refers to, and what the unpickler gets instead of them. With the
# tensor types that torch itself allows, these are all the names that such a file may hold.
_ALLOWED = (
    (_Contents, "tensordict._td.TensorDict"),
    (_Contents, "tensordict.tensordict.TensorDict"),
    (_contents, "tensordict._reductions._make_td"),
    (collections.OrderedDict, "tensordict._td._StringOnlyDict"),
    (collections.OrderedDict, "tensordict.tensordict._StringOnlyDict"),
    (collections.OrderedDict, "tensordict.utils._StringOnlyDict"),
)


def read_pickled_tensordict(path: Path, *, what: str, verify: bool = True) -> dict[str, Any]:
    """The entries of a TensorDict, or of a plain dict of tensors, that ``torch.save`` wrote; memory maps if it can be.

    Args:
        path: the file.
        what: name of what is expected, for messages.
        verify: compare the checksums in the file.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it cannot be read, or refers to anything but tensors and TensorDicts.
    """
    loaded = read_tensors(path, what=what, allowed=_ALLOWED, mmap=True, verify=verify)
    if isinstance(loaded, _Contents):
        loaded = loaded.state.get("_tensordict") if isinstance(loaded.state, dict) else None
    if not isinstance(loaded, dict):
        raise DamagedFileError(f"{path} holds a {type(loaded).__name__}, expected a TensorDict or a dict of tensors")
    return loaded
