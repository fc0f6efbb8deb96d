"""What a run folder says of itself, read as any file is: not trusted. Its configuration, and its records."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import torchrl_pwm.envs.simulators
from torchrl_pwm._utils.door import read_json, read_yaml_text
from torchrl_pwm._utils.errors import DamagedFileError, first_line
from torchrl_pwm._utils.ranges import check_options
from torchrl_pwm.runs.configs import own_targets

CONFIG_FILE = "config.yaml"
CONF = Path(__file__).parent / "conf"
#: What to do about a record of a part of a run that is damaged.
DELETE = "delete it and go on with resume=: what it is of is made again"

_TARGET = "_target_"
_SUM = "# sha256 of all below: "
_SIMULATORS = "torchrl_pwm.envs.simulators"
# Of interpolations those that refer to another option alone, as the package's own configurations do.
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
_CHOICE = re.compile(r"\$\{oc\.select:([A-Za-z_]\w*(?:\.\w+)*)\.\$\{[A-Za-z_]\w*(?:\.\w+)*\},[\w.-]+\}")
_ENTRIES_LIMIT = 20_000  # some ten times those of the largest run; Hydra takes a millisecond for each
_CHAIN_LIMIT = 8


def read_config(folder: str | os.PathLike[str], *, targets: Iterable[str] = (), simulator: bool = True) -> DictConfig:
    """The configuration of the run in a folder.

    A folder may come from anybody, and its configuration says what is built. It may name the parts of this package that
    the package's own configurations name (``_target_``), and nothing else: what a user has of their own, an env or an
    encoder, is named anew where the folder is used. A reference (``${...}``) may be to another option only, not to the
    environment.

    Args:
        folder: the folder.

    Keyword Args:
        targets: what it may name beside the parts of this package; see :func:`named_targets`.
        simulator: whether the env is built from it. If not, the env may be anyone's, and its name is left out.

    Raises:
        FileNotFoundError: if there is none.
        DamagedFileError: if it is no configuration, refers to something else, or names something else.
    """
    file = Path(folder) / CONFIG_FILE
    if not file.exists():
        raise FileNotFoundError(f"No run in {folder}: expected {CONFIG_FILE} there, the folder of a finished run.")
    try:
        text = read_yaml_text(file, what="configuration of a run")
        _check_sum(text, file)
        config = OmegaConf.create(text)
        plain: Any = OmegaConf.to_container(config, resolve=False)
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError(
            f"{file} is no configuration of a run, or damaged ({first_line(error)}): restore it"
        ) from error
    assert isinstance(config, DictConfig)
    _check_references(plain, file)
    if not simulator and isinstance(plain.get("env"), dict):
        _forget_targets(plain["env"], own_targets_and_envs())
        config.env = plain["env"]
    allowed = {*own_targets_and_envs(), *targets}
    for key, target in _targets(plain):
        if not isinstance(target, str) or target not in allowed:
            raise DamagedFileError(
                f"{file} was refused: {key} names {str(target)[:80]!r}, which is no part of torchrl_pwm that runs are "
                "configured with, and building it would run its code. If it is yours, name it anew: on the command "
                f"line {key}=..., in Python load_policy(run, targets=[...])"
            )
    return config


def config_text(config: DictConfig) -> bytes:
    """What is written of a configuration to the folder of a run: YAML, after a line with its checksum."""
    text = OmegaConf.to_yaml(config, resolve=False)
    return f"{_SUM}{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()


def _check_sum(text: str, file: Path) -> None:
    """Compares a configuration with its checksum; one of before has none, and begins with no comment.

    Raises:
        DamagedFileError: if it is not what was written.
    """
    first, _, rest = text.partition("\n")
    if first.startswith("#") and first != f"{_SUM}{hashlib.sha256(rest.encode()).hexdigest()}":
        raise DamagedFileError(
            f"{file} is damaged, or was changed: it does not have the checksum in its first line. Restore it, or, if "
            "you changed it yourself, delete that line"
        )


def check_saved(config: DictConfig, folder: Path) -> None:
    """Compares the configuration of a run with what options may be, before anything is built of it.

    Raises:
        DamagedFileError: for the first value that cannot be.
    """
    try:
        check_options(OmegaConf.to_container(config), limits())  # type: ignore[arg-type]
    except ValueError as error:
        raise _of_file(folder, error) from error


@contextlib.contextmanager
def of_run(folder: Path) -> Iterator[None]:
    """What is amiss with the options of a run that is resumed, as an error of its configuration.

    An option may be missing from it, or be of another kind, where it was cut short or changed.

    Raises:
        DamagedFileError: in place of errors of OmegaConf, and of Hydra where it cannot build what is configured.
    """
    try:
        yield
    except InstantiationException as error:
        # Of a part of this package: what a user's own raises is said as it is.
        ours = "target 'torchrl_pwm." in str(error) and isinstance(error.__cause__, (TypeError, AttributeError))
        if ours or isinstance(error.__cause__, OmegaConfBaseException):
            raise _of_file(folder, error.__cause__ or error) from error
        raise
    except OmegaConfBaseException as error:
        raise _of_file(folder, error) from error


def _of_file(folder: Path, error: BaseException) -> DamagedFileError:
    return DamagedFileError(
        f"{folder / CONFIG_FILE} is no whole configuration of a run, or damaged ({first_line(error)}); restore it, or "
        "begin a new run in another folder"
    )


@functools.cache
def limits() -> dict[str, Any]:
    """What the options of all commands may be, by the ends of their names."""
    table: Any = OmegaConf.to_container(OmegaConf.load(CONF / "limits.yaml"))
    return table


def saved_choice(folder: str | os.PathLike[str], group: str, choices: Sequence[str]) -> str | None:
    """The name of what the run in a folder chose of a group; None if it says none of the choices, or there is no run.

    Raises:
        DamagedFileError: if its configuration is none.
    """
    file = Path(folder) / CONFIG_FILE
    if not file.exists():
        return None
    text = read_yaml_text(file, what="configuration of a run")
    with of_run(Path(folder)):
        plain: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    part = plain.get(group) if isinstance(plain, dict) else None
    name = part.get("name") if isinstance(part, dict) else None
    return name if name in choices else None


def named_targets(*configs: Any) -> set[str]:
    """What configurations that were not read from a folder name: the package's, with what the command line says."""
    return {str(target) for config in configs for _, target in _targets(OmegaConf.to_container(config, resolve=False))}


def names_own_code(override: str) -> bool:
    """Whether a setting of the command line, ``key=value``, names code that is no part of this package."""
    key, _, value = override.partition("=")
    node: Any = value
    for name in reversed(key.lstrip("+").split(".")):
        node = {name: node}
    return any(target not in own_targets_and_envs() for _, target in _targets(node))


@functools.cache
def own_targets_and_envs() -> frozenset[str]:
    """What the package's configurations name, and its envs."""
    in_files = (re.findall(r"^\s*_target_: (\S+)$", file.read_text(), re.MULTILINE) for file in CONF.rglob("*.yaml"))
    envs = [f"{_SIMULATORS}.{name}" for name in dir(torchrl_pwm.envs.simulators) if name.endswith("Env")]
    return frozenset({*own_targets(), *(name for names in in_files for name in names), *envs})


def configured(config: Any, /, *given: Any, **named: Any) -> Any:
    """What the configuration in a run's folder says, built; an error is that of what was called, without Hydra's words.

    Args:
        config: the part of the configuration.
        *given, **named: further arguments.
    """
    try:
        return instantiate(config, *given, **named)
    except InstantiationException as error:
        raise error.__cause__ or error from error


def read_result(file: Path) -> dict[str, Any]:
    """The result of one policy of a run.

    Raises:
        FileNotFoundError: if there is none.
        DamagedFileError: if it is damaged.
    """
    result: dict[str, Any] = read_json(file, what="result of a policy", keys=["task", "seconds"], advice=DELETE)
    if not isinstance(result["task"], str) or not _is_number(result["seconds"]):
        raise DamagedFileError(f"{file} is no result of a policy, or damaged: expected a task and seconds; {DELETE}")
    return result


def read_seconds(file: Path) -> float:
    """The seconds that a run had taken before; 0 if it has not noted any."""
    if not file.exists():
        return 0.0
    seconds = read_json(file, what="clock of a run", advice=DELETE)
    if not _is_number(seconds):
        raise DamagedFileError(f"{file} is no clock of a run, or damaged: expected seconds; {DELETE}")
    return float(seconds)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Everything that a configuration names to be called or imported, and where."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        place = f"{key}.{name}" if key else str(name)
        if name == _TARGET:
            yield place, value
        elif name == "task" and isinstance(value, str) and ":" in value:
            yield place, value  # Gymnasium imports the module before the colon
        yield from _targets(value, place)


def _forget_targets(node: Any, known: frozenset[str]) -> None:
    """Takes the names that are not known, and modules, out of a part of a configuration that nothing is built from."""
    if isinstance(node, dict) and str(node.get(_TARGET)) not in known:
        node.pop(_TARGET, None)
    if isinstance(node, dict) and isinstance(node.get("task"), str):
        node["task"] = node["task"].rpartition(":")[2]
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _forget_targets(value, known)


def _check_references(plain: dict[str, Any], file: Path) -> None:
    """Refuses references that are to no option, or that make much of little.

    Raises:
        DamagedFileError: naming the first.
    """
    sizes: dict[str, int] = {}

    def size(value: Any, chain: int) -> int:
        if isinstance(value, dict):
            return 1 + sum(size(entry, chain) for entry in value.values())
        if isinstance(value, list):
            return 1 + sum(size(entry, chain) for entry in value)
        if not isinstance(value, str) or "${" not in value:
            return 1
        match = _REFERENCE.fullmatch(value) or _CHOICE.fullmatch(value)
        if match is None:
            raise _refused(file, f"refers to {value[:80]!r}, expected another option, whole: ${{group.option}}")
        if chain == _CHAIN_LIMIT:
            raise _refused(file, f"refers from option to option more than {_CHAIN_LIMIT} times, or in a circle")
        if value not in sizes:
            sizes[value] = size(_select(plain, match[1]), chain + 1)
            if sizes[value] > _ENTRIES_LIMIT:
                raise _refused(file, f"has more than {_ENTRIES_LIMIT:,} entries by reference")
        return sizes[value]

    if size(plain, 0) > _ENTRIES_LIMIT:
        raise _refused(file, f"has more than {_ENTRIES_LIMIT:,} entries")


def _select(plain: Any, key: str) -> Any:
    for name in key.split("."):
        if isinstance(plain, str):  # a reference itself, which counts with all it refers to
            return plain
        plain = plain.get(name) if isinstance(plain, dict) else None
    return plain


def _refused(file: Path, said: str) -> DamagedFileError:
    return DamagedFileError(f"{file} was refused: it {said}; write the value itself there")
