"""Files that hold a world model: published TD-MPC2 and PWM checkpoints, and the quickstart of the package."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from torchrl_pwm._utils.door import read_safetensors, read_tensors, refuse_non_finite
from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm.modules.arguments import saved_arguments, with_arguments

QUICKSTART_FILE = Path(__file__).parent.parent / "assets" / "quickstart.safetensors"

#: What the weights of published models do not tell.
PUBLISHED = {"simnorm_dim": 8, "vmin": -10.0, "vmax": 10.0}

_LAYER = re.compile(r"_(encoder|dynamics|reward|termination)\.(?:state\.)?(\d+)\.(ln\.)?(weight|bias)")
# Other parts of TD-MPC2 (policy prior, value ensembles) and its bookkeeping entries.
_OTHER = re.compile(r"_pi\.|(_Qs|_detach_Qs|_target_Qs)(_params)?\.|log_std_(min|dif)$|_action_masks$")


def read_world_model(
    source: str | os.PathLike[str] | Mapping[str, Any], *, action_dims: Sequence[int] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The sizes and weights of a published world model, for :class:`~torchrl_pwm.PWMWorldModel`.

    A state dict of this package carries all arguments of the constructor, which are the sizes then.

    Raises:
        ValueError: if the layout is unknown, incomplete or inconsistent; the offending keys are named.
        DamagedFileError: if the file is no checkpoint, or a weight is not finite; it is named.
        FileNotFoundError: if ``source`` is a path that does not exist.
    """
    state = load_state(source)
    with layout_of(source):
        return _parse(state, action_dims)


def _parse(state: Mapping[str, Any], action_dims: Sequence[int] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    arguments = saved_arguments(state)
    weights: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        if not isinstance(value, Tensor):
            if not _OTHER.match(key):
                unknown.append(key)
            continue
        if key in ("_task_emb.weight", "observation_mean", "observation_std"):
            weights[key] = value
        elif match := _LAYER.fullmatch(key):
            part, index, norm, name = match.groups()
            weights[f"_{part}.{index}.{norm or ''}{name}"] = value
        elif not _OTHER.match(key):
            if arguments is None:
                unknown.append(key)
            weights[key] = value
    if unknown:
        raise ValueError(
            "Unknown checkpoint layout: expected TD-MPC2's (mid-2024 or current, state observations) or PWM's, "
            f"found the unknown keys {unknown[:8]}{' ...' if len(unknown) > 8 else ''}."
        )
    refuse_non_finite(weights, "The state dict")  # those of a file are finite already
    sizes = model_sizes(weights) if arguments is None else arguments
    masks = state.get("_action_masks")
    if action_dims is not None:
        sizes["action_dims"] = tuple(action_dims)
    elif isinstance(masks, Tensor) and sizes["num_tasks"]:
        sizes["action_dims"] = tuple(int(n) for n in masks.sum(-1))
    return sizes, weights


@contextlib.contextmanager
def layout_of(source: Any) -> Iterator[None]:
    """What is wrong with the entries of a checkpoint, as an error of its file if it comes from one."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if isinstance(source, (str, os.PathLike)) and not isinstance(error, DamagedFileError):
            raise DamagedFileError(f"{source}: {error}") from error
        raise


def load_state(source: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a file, in ``{"model": ...}``, or itself; no pickled code is executed.

    Raises:
        ValueError: if there is no state dict.
        DamagedFileError: if the file is no checkpoint.
        FileNotFoundError: if there is no such file.
    """
    where = ""
    kind: type[ValueError] = ValueError
    if isinstance(source, (str, os.PathLike)):
        where, kind = f"{source}: ", DamagedFileError
        source = read_tensors(source, finite=True)
    inner = source.get("model", source) if isinstance(source, Mapping) else source
    if not isinstance(inner, Mapping) or not all(isinstance(key, str) for key in inner):
        found = type(inner).__name__ if inner is source else f'{{"model": {type(inner).__name__}}}'
        raise kind(
            f'{where}Unknown checkpoint layout: expected a state dict or {{"model": state dict}}, found {found}.'
        )
    if not inner:
        raise kind(f"{where}Unknown checkpoint layout: expected the weights of a model, found none.")
    return inner


def untold_arguments(sizes: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """All arguments: those that a file tells, and of the others those that are ``given``.

    Raises:
        ValueError: if a given one, that is not the published one, contradicts what the file says.
    """
    wrong = [
        f"{name}={value} (the file says {sizes[name]})"
        for name, value in given.items()
        if name in sizes and sizes[name] != value and value != PUBLISHED[name]
    ]
    if wrong:
        raise ValueError(f"These weights were made with other arguments than {', '.join(wrong)}: leave them out.")
    return {**given, **sizes}


class QuickstartContents(NamedTuple):
    """Contents of a quickstart file, from which :func:`.load_quickstart` builds a model and start states.

    ``options`` and ``weights`` are those of :meth:`.PWMWorldModel.from_tdmpc2`; ``starts`` holds the index of each
    task, its observations [N, O] and actions [N, A], both in half precision and without padding, of which the first
    ``recorded`` are of the data's behaviour (all, where a file does not say).
    """

    options: dict[str, Any]
    weights: dict[str, Tensor]
    starts: dict[str, tuple[int, Tensor, Tensor]]
    recorded: dict[str, int]
    task_set: str
    behavior: dict[str, dict[str, Any]]
    source: dict[str, Any]


def read_quickstart(file: str | os.PathLike[str] | None = None) -> QuickstartContents:
    """Reads the package's quickstart, or another file of its form; no code is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or of another form.
    """
    path = Path(QUICKSTART_FILE if file is None else file)
    if not path.is_file():
        raise FileNotFoundError(f"no quickstart in {path}: install the package anew, or name a file that exists")
    try:
        tensors, strings = read_safetensors(path, what="quickstart file", finite=True)
        header = json.loads(strings["quickstart"])
        weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
        if "arguments" in header:
            weights = with_arguments(weights, header["arguments"])
        read_world_model(weights)
        starts = {
            task: (header["indices"][task], tensors[f"starts.{task}.observation"], tensors[f"starts.{task}.action"])
            for task in header["behavior"]
        }
        recorded = {task: int(count) for task, count in header.get("recorded", {}).items()}
        rest = recorded, header["task_set"], header["behavior"], header["source"]
        return QuickstartContents(header["model"], weights, starts, *rest)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(
            f"{path} is no quickstart file, or damaged ({error}): install the package anew"
        ) from error


def model_sizes(weights: Mapping[str, Tensor], *, published: bool = True) -> dict[str, Any]:
    """Constructor arguments of the model that has these weights, which have the ``published`` norms or others.

    Raises:
        ValueError: if entries are missing.
    """
    termination = any(key.startswith("_termination.") for key in weights)
    parts = ["encoder", "dynamics", "reward", *(["termination"] if termination else [])]
    shapes = {part: _layer_shapes(weights, part, published) for part in parts}
    embedding = weights.get("_task_emb.weight")
    num_tasks, task_dim = embedding.shape if embedding is not None else (0, 0)
    latent_dim, bins = shapes["encoder"][-1][0], shapes["reward"][-1][0]
    first = weights["_dynamics.0.weight"]
    heads = len(first) if first.ndim == 3 else 1
    return {
        "observation_dim": shapes["encoder"][0][1] - task_dim,
        "action_dim": shapes["dynamics"][0][1] - latent_dim - task_dim,
        "latent_dim": latent_dim,
        "encoder_units": tuple(out for out, _ in shapes["encoder"][:-1]),
        "units": tuple(out for out, _ in shapes["dynamics"][:-1]),
        "num_bins": bins if bins > 1 else None,
        "num_tasks": num_tasks,
        "task_dim": task_dim,
        **({"termination": True} if termination else {}),
        **({"num_heads": heads} if heads > 1 else {}),
    }


def _layer_shapes(weights: Mapping[str, Tensor], part: str, published: bool) -> list[tuple[int, int]]:
    """(out, in) of each linear layer of a part, in order; several heads have an axis before them."""
    indices = sorted({int(m[2]) for key in weights if (m := _LAYER.fullmatch(key)) and m[1] == part})
    if not indices or indices != list(range(len(indices))):
        raise ValueError(f"Incomplete checkpoint: expected layers 0, 1, ... under _{part}, found {indices or 'none'}.")
    expected = {f"_{part}.{i}.{name}" for i in indices for name in ("weight", "bias")}
    normed = indices[:-1] if part in ("reward", "termination") else indices
    expected |= {f"_{part}.{i}.ln.{name}" for i in normed for name in ("weight", "bias")}
    if not published:
        expected = {key for key in expected if ".ln." not in key}
    found = {key for key in weights if published or ".ln." not in key}
    if missing := sorted(expected ^ {key for key in found if key.startswith(f"_{part}.")}):
        raise ValueError(f"Incomplete or inconsistent checkpoint: the keys {missing[:8]} do not fit together.")
    return [tuple(weights[f"_{part}.{i}.weight"].shape[-2:]) for i in indices]  # type: ignore[misc]
