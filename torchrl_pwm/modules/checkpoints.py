"""Files that hold a world model: published TD-MPC2 and PWM checkpoints, and the quickstart of the package."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

QUICKSTART_FILE = Path(__file__).parent.parent / "assets" / "quickstart.safetensors"

_LAYER = re.compile(r"_(encoder|dynamics|reward|termination)\.(?:state\.)?(\d+)\.(ln\.)?(weight|bias)")
# Other parts of TD-MPC2 (policy prior, value ensembles) and its bookkeeping entries.
_OTHER = re.compile(r"_pi\.|(_Qs|_detach_Qs|_target_Qs)(_params)?\.|log_std_(min|dif)$|_action_masks$")


def read_world_model(
    source: str | os.PathLike[str] | Mapping[str, Any], *, action_dims: Sequence[int] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The sizes and weights of a published world model, for :class:`~torchrl_pwm.PWMWorldModel`.

    Raises:
        ValueError: if the layout is unknown, incomplete or inconsistent; the offending keys are named.
        FileNotFoundError: if ``source`` is a path that does not exist.
    """
    state = load_state(source)
    weights: dict[str, Tensor] = {}
    unknown = []
    for key, value in state.items():
        if key in ("_task_emb.weight", "observation_mean", "observation_std"):
            weights[key] = value
        elif match := _LAYER.fullmatch(key):
            part, index, norm, name = match.groups()
            weights[f"_{part}.{index}.{norm or ''}{name}"] = value
        elif not _OTHER.match(key):
            unknown.append(key)
    if unknown:
        raise ValueError(
            "Unknown checkpoint layout: expected TD-MPC2's (mid-2024 or current, state observations) or PWM's, "
            f"found the unknown keys {unknown[:8]}{' ...' if len(unknown) > 8 else ''}."
        )
    sizes = _sizes(weights)
    masks = state.get("_action_masks")
    if action_dims is not None:
        sizes["action_dims"] = tuple(action_dims)
    elif isinstance(masks, Tensor) and sizes["num_tasks"]:
        sizes["action_dims"] = tuple(int(n) for n in masks.sum(-1))
    return sizes, weights


def load_state(source: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in a file, in ``{"model": ...}``, or itself; no pickled code is executed."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"No checkpoint at {path}.")
        source = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(source, Mapping) and isinstance(source.get("model"), Mapping):
        source = source["model"]
    if not isinstance(source, Mapping):
        raise ValueError(
            'Unknown checkpoint layout: expected a state dict or {"model": state dict}, '
            f"found {type(source).__name__}."
        )
    return source


class QuickstartContents(NamedTuple):
    """Contents of a quickstart file, from which :func:`.load_quickstart` builds a model and start states.

    ``options`` and ``weights`` are those of :meth:`.PWMWorldModel.from_tdmpc2`; ``starts`` holds the index of each
    task, its observations [N, O] and actions [N, A], both in half precision and without padding.
    """

    options: dict[str, Any]
    weights: dict[str, Tensor]
    starts: dict[str, tuple[int, Tensor, Tensor]]
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
        with safetensors.safe_open(path, "pt") as archive:
            header = json.loads((archive.metadata() or {})["quickstart"])
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
        read_world_model(weights)
        starts = {
            task: (header["indices"][task], tensors[f"starts.{task}.observation"], tensors[f"starts.{task}.action"])
            for task in header["behavior"]
        }
        rest = header["task_set"], header["behavior"], header["source"]
        return QuickstartContents(header["model"], weights, starts, *rest)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no quickstart file, or damaged ({error}): install the package anew") from error


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments of the model that has these weights."""
    termination = any(key.startswith("_termination.") for key in weights)
    parts = ["encoder", "dynamics", "reward", *(["termination"] if termination else [])]
    shapes = {part: _layer_shapes(weights, part) for part in parts}
    embedding = weights.get("_task_emb.weight")
    num_tasks, task_dim = embedding.shape if embedding is not None else (0, 0)
    latent_dim, bins = shapes["encoder"][-1][0], shapes["reward"][-1][0]
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
    }


def _layer_shapes(weights: Mapping[str, Tensor], part: str) -> list[tuple[int, int]]:
    """(out, in) of each linear layer of a part, in order."""
    indices = sorted({int(m[2]) for key in weights if (m := _LAYER.fullmatch(key)) and m[1] == part})
    if not indices or indices != list(range(len(indices))):
        raise ValueError(f"Incomplete checkpoint: expected layers 0, 1, ... under _{part}, found {indices or 'none'}.")
    expected = {f"_{part}.{i}.{name}" for i in indices for name in ("weight", "bias")}
    normed = indices[:-1] if part in ("reward", "termination") else indices
    expected |= {f"_{part}.{i}.ln.{name}" for i in normed for name in ("weight", "bias")}
    if missing := sorted(expected ^ {key for key in weights if key.startswith(f"_{part}.")}):
        raise ValueError(f"Incomplete or inconsistent checkpoint: the keys {missing[:8]} do not fit together.")
    return [tuple(weights[f"_{part}.{i}.weight"].shape) for i in indices]  # type: ignore[misc]
