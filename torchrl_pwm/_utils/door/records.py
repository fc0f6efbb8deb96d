"""Records in text: JSON, and the YAML of configurations, small and not too deep before they are parsed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torchrl_pwm._utils.door.archives import Broken
from torchrl_pwm._utils.door.kinds import ordinary_file
from torchrl_pwm._utils.errors import DamagedFileError, first_line
from torchrl_pwm._utils.extras import require

# A byte of text can become some twenty in memory.
_JSON_LIMIT = 16 << 20
_YAML_LIMIT = 1 << 20
_DEPTH_LIMIT = 64
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def read_json(
    path: str | os.PathLike[str], *, what: str = "record", keys: Sequence[str] | None = None, advice: str = "restore it"
) -> Any:
    """What a JSON file says.

    Args:
        path: the file.

    Keyword Args:
        what: name of what is expected, for messages.
        keys: entries that the object in the file must have; None for any JSON.
        advice: what to do about a damaged file, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no JSON, too large or nested too deep, or lacks an entry.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "result.json"
        >>> _ = path.write_text('{"score": 0.5}')
        >>> read_json(path, keys=["score"])
        {'score': 0.5}
        >>> _ = path.write_text("[" * 100_000)
        >>> read_json(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        torchrl_pwm._utils.errors.DamagedFileError: ...result.json is no record, or damaged: it is nested more than ...
    """
    path = ordinary_file(path, what)
    try:
        text = _read(path, _JSON_LIMIT)
        depth = 0
        for bracket in _BRACKETS.finditer(text):
            depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(bracket[0], 0)
            if depth > _DEPTH_LIMIT:
                raise Broken(f"it is nested more than {_DEPTH_LIMIT} deep")
        content = json.loads(text)
        if keys is not None and not (isinstance(content, dict) and set(keys) <= content.keys()):
            found = sorted(content)[:8] if isinstance(content, dict) else type(content).__name__
            raise Broken(f"expected an object with {', '.join(keys) or 'any entries'}, found {found}")
    except (Broken, ValueError, RecursionError) as error:
        said = first_line(error) if isinstance(error, Broken) else f"expected JSON ({first_line(error)})"
        raise DamagedFileError(f"{path} is no {what}, or damaged: {said}; {advice}") from error
    return content


def read_yaml_text(path: str | os.PathLike[str], *, what: str = "configuration") -> str:
    """The text of a YAML file that is a mapping of plain values, each written out.

    Args:
        path: the file.

    Keyword Args:
        what: name of what is expected, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no such YAML, too large or nested too deep.
        ImportError: without PyYAML.
    """
    path = ordinary_file(path, what)
    yaml = require("yaml", extra="hydra", purpose=f"the {what} {path}")
    try:
        text = _read(path, _YAML_LIMIT).decode()
        _check_events(yaml, text)
    except (Broken, ValueError, yaml.YAMLError) as error:
        said = first_line(error) if isinstance(error, Broken) else f"expected YAML ({first_line(error)})"
        raise DamagedFileError(
            f"{path} is no {what}, or damaged: {said}; restore it, or give the folder of another run"
        ) from error
    return text


def _check_events(yaml: ModuleType, text: str) -> None:
    """Refuses what few bytes of YAML can make much of: references, and types other than the plain ones."""
    depth, number = 0, 0
    for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise Broken(f"it refers to another part of itself (*{event.anchor}), which no configuration of a run does")
        if getattr(event, "tag", None) is not None:
            raise Broken(f"it names a type ({event.tag}), which no configuration of a run does")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH_LIMIT:
            raise Broken(f"it is nested more than {_DEPTH_LIMIT} deep")
        if number == 2 and not isinstance(event, yaml.MappingStartEvent):
            raise Broken("expected a mapping")
    if number < 2:
        raise Broken("expected a mapping, found nothing")


def _read(path: Path, limit: int) -> bytes:
    if (size := path.stat().st_size) > limit:
        raise Broken(f"it has {size >> 20} MiB, expected at most {limit >> 20}")
    return path.read_bytes()
