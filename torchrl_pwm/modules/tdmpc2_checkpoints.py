"""Reads and writes the published checkpoints of TD-MPC2's whole model, in both layouts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrl_pwm.modules.checkpoints import layout_of, load_state, read_world_model

_POLICY = re.compile(r"_pi\.((\d+)\.(?:ln\.)?(?:weight|bias))")
# Mid-2024: parameters numbered through. Current: by layer, the live ones under `_Qs.params`.
_OLD_Q = re.compile(r"_(target_)?Qs\.params\.(\d+)")
_NEW_Q = re.compile(r"(?:_Qs\.params|_(target_)Qs_params)\.(\d+)\.(weight|bias|ln\.weight|ln\.bias)")
# The live Q functions once more, what newer tensordict releases add, and bookkeeping.
_COPY = re.compile(r"_detach_Qs(_params)?\.|_(target_)?Qs\.module\.|_(target_)?Qs[._]params\.__(batch_size|device)$")
_PLACES = ("weight", "bias", "ln.weight", "ln.bias")


class Published(NamedTuple):
    """Constructor arguments and weights of world model and heads, under the names of :class:`TDMPC2Model`."""

    world_sizes: dict[str, Any]
    world_weights: dict[str, Tensor]
    head_sizes: dict[str, Any]
    head_weights: dict[str, Tensor]


def read_tdmpc2(
    source: str | os.PathLike[str] | Mapping[str, Any], *, action_dims: Sequence[int] | None = None
) -> Published:
    """The sizes and weights of a published TD-MPC2 model.

    Raises:
        ValueError: if the layout is unknown, incomplete or inconsistent (the offending keys are named), or the action
            sizes of many tasks are neither given nor in the checkpoint.
        FileNotFoundError: if ``source`` is a path that does not exist.
    """
    state = load_state(source)
    with layout_of(source):
        world_sizes, world_weights = read_world_model(state, action_dims=action_dims)
    if world_sizes["num_tasks"] and "action_dims" not in world_sizes:
        raise ValueError(
            f"This checkpoint has {world_sizes['num_tasks']} tasks but does not say how many entries of the action "
            "each has, which the policy needs: give action_dims, for instance MT80.action_dims."
        )
    with layout_of(source):
        return Published(world_sizes, world_weights, *_parse_heads(state))


def _parse_heads(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes and weights of the policy and the Q functions."""
    weights: dict[str, Tensor] = {}
    layers: list[int] = []
    unknown = []
    for key, value in state.items():
        if match := _POLICY.fullmatch(key):
            weights[f"policy.{match[1]}"] = value
            layers.append(int(match[2]))
        elif match := _OLD_Q.fullmatch(key):
            weights[f"{match[1] or ''}q.params.{match[2]}"] = value
        elif match := _NEW_Q.fullmatch(key):
            weights[f"{match[1] or ''}q.params.{4 * int(match[2]) + _PLACES.index(match[3])}"] = value
        elif re.match(r"_pi\.|_(detach_|target_)?Qs[._]", key) and not _COPY.match(key):
            unknown.append(key)
    if unknown:
        raise ValueError(
            "Unknown checkpoint layout: expected TD-MPC2's policy and Q functions as of mid-2024 or as they are now, "
            f"found the unknown keys {unknown[:8]}{' ...' if len(unknown) > 8 else ''}."
        )
    if not any(key.startswith(("policy.", "q.", "target_q.")) for key in weights):
        raise ValueError(
            "This checkpoint has a world model only, without policy and Q functions (keys _pi.*, _Qs.*): read it with "
            "PWMWorldModel.from_tdmpc2."
        )
    _check_complete(weights, layers)
    return _head_sizes(weights, layers, state), weights


def check_world_model(model: Any) -> None:
    """Raises ValueError for a world model that TD-MPC2 does not train and its layouts do not hold."""
    if model.reward_moments is not None:
        raise ValueError("TDMPC2Model needs rewards in raw units, found a world model with normalize_rewards=True.")
    if model.num_heads > 1 or model.has_decoder:
        raise ValueError(
            "TDMPC2Model needs a world model with one dynamics head and no decoder, which are all that its objective "
            f"trains, found num_heads={model.num_heads} and decoder={model.has_decoder}: build it without."
        )


def _check_complete(weights: Mapping[str, Tensor], layers: Sequence[int]) -> None:
    expected = set(_mlp("policy", layers))
    indices = [int(key.rsplit(".", 1)[1]) for key in weights if key.startswith(("q.", "target_q."))]
    # Four to a hidden layer, two for the last.
    count = 4 * (max(indices, default=9) // 4) + 2
    expected |= {f"{name}.params.{index}" for name in ("q", "target_q") for index in range(count)}
    if wrong := sorted(expected ^ set(weights)):
        raise ValueError(
            "Incomplete or inconsistent checkpoint: the policy and Q functions lack, or have too many of, the entries "
            f"{wrong[:8]}{' ...' if len(wrong) > 8 else ''}."
        )


def _mlp(name: str, layers: Sequence[int]) -> Iterator[str]:
    """Keys of a head with as many layers as the largest index says."""
    last = max(layers, default=2)
    for layer in range(last + 1):
        yield from (f"{name}.{layer}.{place}" for place in (_PLACES if layer < last else _PLACES[:2]))


def _head_sizes(weights: Mapping[str, Tensor], layers: Sequence[int], state: Mapping[str, Any]) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "units": tuple(weights[f"policy.{layer}.weight"].shape[0] for layer in range(max(layers))),
        "num_q": weights["q.params.0"].shape[0],
    }
    if "log_std_min" in state and "log_std_dif" in state:
        low = state["log_std_min"].item()
        sizes |= {"log_std_min": low, "log_std_max": low + state["log_std_dif"].item()}
    return sizes


def write_tdmpc2(
    world: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    layout: str,
    *,
    log_std_limits: tuple[float, float],
    num_tasks: int = 0,
    action_masks: Tensor | None = None,
    statistics: bool = False,
) -> dict[str, Any]:
    """The state dict that the published code saves of such a model; tensors are copies.

    Args:
        world: state dict of the world model.
        heads: state dict of the whole :class:`TDMPC2Model`, of which everything but the world model is read.
        layout: ``"old"`` (mid-2024) or ``"new"`` (current).

    Raises:
        ValueError: if the layout is another, or cannot hold this model.
    """
    if layout not in ("old", "new"):
        raise ValueError(f'layout must be "old" (mid-2024) or "new" (current), found {layout!r}.')
    world = {key.replace("_encoder.", "_encoder.state.", 1): value for key, value in world.items()}
    if not statistics and (extra := [key for key in world if key.startswith("observation_")]):
        raise ValueError(
            f"TD-MPC2's layouts have no place for the world model's observation statistics {extra}: save "
            "model.state_dict() instead, or pass statistics=True for a file that only this package reads."
        )
    policy = _renamed(heads, "policy", "_pi")
    episodic = any(key.startswith("_termination.") for key in world)
    if layout == "old":
        if log_std_limits != (-10, 2) or episodic:
            raise ValueError(
                "The mid-2024 layout holds neither limits of log sigma other than (-10, 2) nor a termination head, "
                f'found {log_std_limits} and episodic={episodic}: use layout="new".'
            )
        values = _renamed(heads, "q.params", "_Qs.params") | _renamed(heads, "target_q.params", "_target_Qs.params")
        return _copied({**world, **policy, **values})

    low, high = log_std_limits
    first: dict[str, Any] = {"log_std_min": torch.tensor(low), "log_std_dif": torch.tensor(high - low)}
    if num_tasks:
        if action_masks is None:
            raise ValueError(
                f"The current layout holds the action sizes of the {num_tasks} tasks, which this model does not know: "
                'build its world model with action_dims, or use layout="old".'
            )
        first = {"_action_masks": action_masks, **first}
    current: dict[str, Any] = {}
    for name, part in (("q", "_Qs.params"), ("q", "_detach_Qs_params"), ("target_q", "_target_Qs_params")):
        for key, value in _renamed(heads, f"{name}.params", "").items():
            layer, place = divmod(int(key[1:]), 4)
            current[f"{part}.{layer}.{_PLACES[place]}"] = value
        current |= {f"{part}.__batch_size": torch.Size([len(heads["q.params.0"])]), f"{part}.__device": None}
    return _copied({**first, **world, **policy, **current})


def _renamed(state: Mapping[str, Tensor], name: str, to: str) -> dict[str, Tensor]:
    return {to + key[len(name) :]: value for key, value in state.items() if key.startswith(name + ".")}


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: v.detach().clone() if isinstance(v, Tensor) else v for key, v in state.items()}
