"""Files of whole agents that the published PWM and SHAC code saves: read without running anything they hold."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrl_pwm._utils.door import read_tensors, refuse_non_finite
from torchrl_pwm._utils.errors import DamagedFileError

#: Names of the file's moments: of observations, rewards and returns.
MOMENTS = ("obs_rms", "rew_rms", "ret_rms")
#: Names of its Adam states, and of the networks they are of.
OPTIMIZERS = {"actor_opt": "actor", "critic_opt": "critic", "world_model_opt": "world_model"}


class _Moments:
    """Stands in for the published class of running moments: keeps its state and runs nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


# The class, as the published code of PWM and of SHAC imports it.
_ALLOWED = tuple((_Moments, f"{package}utils.running_mean_std.RunningMeanStd") for package in ("pwm.", "shac.", ""))


@dataclasses.dataclass(frozen=True)
class MomentsState:
    """Running mean and variance, of any shape, and the number of samples."""

    mean: Tensor
    var: Tensor
    count: float


class AdamState(NamedTuple):
    """What Adam keeps of one parameter."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class AgentFile(NamedTuple):
    """Contents of an agent's file.

    ``world_model`` is None in SHAC's. ``optimizers`` holds, by network and by name of the parameter, what its Adam
    keeps; the rates in the file are those of the end of its run.
    """

    actor: dict[str, Tensor]
    critic: dict[str, Tensor]
    world_model: dict[str, Tensor] | None
    moments: dict[str, MomentsState]
    optimizers: dict[str, dict[str, AdamState]]


def is_agent(contents: Any) -> bool:
    """Whether what was read from a file has the layout of an agent's."""
    return isinstance(contents, Mapping) and {"actor", "critic"} <= contents.keys()


def read_agent(path: str | os.PathLike[str]) -> AgentFile:
    """The parts of a published agent's file.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is no checkpoint, or refers to anything but tensors and running moments.
        ValueError: if it is one of something else, or its parts are not what they should be.
    """
    return parse_agent(read_agent_file(path), path)


def read_agent_file(path: str | os.PathLike[str]) -> Any:
    """What a file of an agent, or any other checkpoint, holds."""
    return read_tensors(path, allowed=_ALLOWED)


def parse_agent(contents: Any, path: str | os.PathLike[str]) -> AgentFile:
    """The parts of an agent's file that was read.

    Raises:
        DamagedFileError: if it is none, or its parts are not what they should be.
    """
    if not is_agent(contents):
        keys = sorted(map(str, contents))[:8] if isinstance(contents, Mapping) else type(contents).__name__
        raise DamagedFileError(
            f"{path} is no agent of PWM or SHAC: expected the entries actor and critic, with PWM's world_model, found "
            f"{keys}; a world model alone is read by load_world_model"
        )
    networks = {name: _state(contents.get(name), name, path) for name in ("actor", "critic")}
    world_model = contents.get("world_model")
    if world_model is not None:
        networks["world_model"] = _state(world_model, "world_model", path)
    try:
        actor_sizes(networks["actor"]), critic_sizes(networks["critic"])
    except (ValueError, LookupError) as error:
        raise DamagedFileError(f"{path}: {error}") from error
    moments = {
        name: _moments(contents[name], name, path) for name in MOMENTS if contents.get(name) not in (None, False)
    }
    optimizers = {
        network: _adam(contents[name], _in_optimizer_order(networks[network]), name, path)
        for name, network in OPTIMIZERS.items()
        if contents.get(name) is not None and network in networks
    }
    return AgentFile(networks["actor"], networks["critic"], networks.get("world_model"), moments, optimizers)


def actor_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of :func:`~torchrl_pwm.make_pwm_actor` for a published actor."""
    layers = sorted(int(m[1]) for key in state if (m := re.fullmatch(r"mu_net\.(\d+)\.weight", key)))
    linear = [state[f"mu_net.{layer}.weight"] for layer in layers if state[f"mu_net.{layer}.weight"].ndim == 2]
    if not linear or "logstd" not in state:
        raise ValueError(f"Unknown layout of an actor: expected logstd and mu_net.*, found {sorted(state)[:8]}.")
    return {
        "latent_dim": linear[0].shape[1],
        "action_dim": linear[-1].shape[0],
        "units": [weight.shape[0] for weight in linear[:-1]],
    }


def critic_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of :func:`~torchrl_pwm.make_value_ensemble` for published critics."""
    count = len(state)
    if set(state) != {f"params.{index}" for index in range(count)} or count % 4 != 2:
        raise ValueError(
            "Unknown layout of critics: expected stacked params.0, params.1, ..., four to a hidden layer and two for "
            f"the last, found {sorted(state)[:8]}."
        )
    weights = [state[f"params.{index}"] for index in range(0, count, 4)]
    return {
        "latent_dim": weights[0].shape[2],
        "units": [weight.shape[1] for weight in weights[:-1]],
        "num_nets": weights[0].shape[0],
    }


def _state(value: Any, name: str, path: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping) or not value or not all(isinstance(entry, Tensor) for entry in value.values()):
        raise DamagedFileError(f"{path} is no agent of PWM or SHAC: expected a state dict under {name}")
    refuse_non_finite(value, path, name)
    return dict(value)


def _moments(value: Any, name: str, path: Any) -> MomentsState:
    state = value.state if isinstance(value, _Moments) else value
    expected = f"{path}: expected running moments under {name} (mean, var and count)"
    if not isinstance(state, Mapping) or not {"mean", "var", "count"} <= state.keys():
        raise DamagedFileError(f"{expected}, found {type(value).__name__}")
    mean, var, count = state["mean"], state["var"], float(state["count"])
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or mean.shape != var.shape:
        raise DamagedFileError(f"{expected} of one shape")
    if not (mean.isfinite().all() and var.isfinite().all() and (var >= 0).all() and 0 <= count < math.inf):
        raise DamagedFileError(f"{expected} that are finite, with a variance of at least 0")
    return MomentsState(mean.detach(), var.detach(), count)


def _in_optimizer_order(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The parameters as the published code gives them to Adam: of a world model the task embedding last, if at all."""
    return sorted(state.items(), key=lambda entry: entry[0] == "_task_emb.weight")


def _adam(value: Any, named: Sequence[tuple[str, Tensor]], optimizer: str, path: Any) -> dict[str, AdamState]:
    """What Adam keeps, by name of the parameters, which are in the order in which it was given them."""
    state = value.get("state") if isinstance(value, Mapping) else None
    if not isinstance(state, Mapping):
        raise DamagedFileError(f"{path}: expected the state of Adam under {optimizer}, found {type(value).__name__}")
    kept = {}
    for index, (name, parameter) in enumerate(named):
        entry = state.get(index)
        if entry is None:  # of a network that was not trained
            continue
        try:
            adam = AdamState(torch.as_tensor(entry["step"]), entry["exp_avg"], entry["exp_avg_sq"])
            fits = adam.exp_avg.shape == adam.exp_avg_sq.shape == parameter.shape
        except (KeyError, TypeError, AttributeError, RuntimeError):
            fits = False
        if not fits:
            raise DamagedFileError(f"{path}: the state of Adam under {optimizer} does not fit the parameter {name}")
        refuse_non_finite(adam._asdict(), path, f"{optimizer}.{name}")
        kept[name] = adam
    return kept
