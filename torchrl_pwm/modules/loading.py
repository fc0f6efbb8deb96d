"""World models from files: those that this package writes, and those that were published."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrl_pwm._utils.checkpoint import has_checkpoint, load_checkpoint
from torchrl_pwm._utils.door import is_safetensors, read_safetensors, read_yaml_text, refuse_non_finite
from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm._utils.extras import require
from torchrl_pwm.modules.agent_files import is_agent, parse_agent, read_agent_file
from torchrl_pwm.modules.agents import PWMAgent
from torchrl_pwm.modules.arguments import saved_arguments, with_arguments
from torchrl_pwm.modules.checkpoints import layout_of, model_sizes
from torchrl_pwm.modules.hub import CONFIG_FILE, WEIGHTS_FILE, class_of, load_folder, read_config
from torchrl_pwm.modules.presets import preset_sizes
from torchrl_pwm.modules.tdmpc2 import TDMPC2Model
from torchrl_pwm.modules.world_model import PWMWorldModel

# Where a run leaves its world model, the last word first; and how it says what it was configured to be.
_IN_A_RUN = ("world_model/world_model.pt", "world_model.pt", "model/model.pt", "model.pt", "world_model", "model")
_RUN_CONFIG = "config.yaml"
# Parts of a checkpoint that may hold a world model, and of a state dict that holds more than one.
_COMPONENTS = ("world_model", "loss_module")
_PREFIX = "world_model."


def load_world_model(
    path: str | os.PathLike[str],
    *,
    action_dims: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    **arguments: Any,
) -> PWMWorldModel:
    """A world model from any file that this package writes, or that was published; no code is executed.

    Read are a run's ``world_model.pt`` and ``model.pt`` of any version, the folder of a run or of its checkpoint, what
    ``save_pretrained`` wrote (of a world model, an agent, a TD-MPC2 model), the quickstart, TD-MPC2's checkpoints in
    both layouts, PWM's multi-task ones, and the agent files of PWM's single-task runs.

    Files of this package say how the model was built. Older ones do not: of them the configuration of their run is
    read, beside them, with PyYAML (the ``hydra`` extra brings it). Published ones have the published settings.

    Args:
        path: file or folder.

    Keyword Args:
        action_dims: action size of each task, in place of what the file says, if it does.
        device: where the model goes. Default: the CPU.
        **arguments: of :class:`~torchrl_pwm.PWMWorldModel`, for a file that does not say how its model was built:
            ``simnorm_dim``, ``residual``, ``vmin``, ``vmax``, ``observation_clip``.

    Raises:
        FileNotFoundError: if there is nothing at ``path``, or a folder holds no world model.
        DamagedFileError: if a file is no checkpoint, or damaged.
        ValueError: if it is a checkpoint of something else, arguments contradict it, or it needs them.

    Examples:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/model.pt"
        >>> model = PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), simnorm_dim=4)
        >>> torch.save(model.state_dict(), path)
        >>> load_world_model(path).constructor_arguments["simnorm_dim"]
        4
    """
    model = _load(Path(path), action_dims, arguments)
    return model if device is None else model.to(device)


def _load(path: Path, action_dims: Sequence[int] | None, arguments: Mapping[str, Any]) -> PWMWorldModel:
    if not path.exists():
        raise FileNotFoundError(f"No checkpoint at {path}.")
    if path.is_dir():
        return _from_folder(path, action_dims, arguments)
    if is_safetensors(path):
        return _from_safetensors(path, action_dims, arguments)
    contents = read_agent_file(path)
    if is_agent(contents):
        agent = PWMAgent._from_file(parse_agent(contents, path), path)
        if agent.world_model is None:
            raise ValueError(f"{path} is an agent of SHAC, which has no world model: read it with PWMAgent.from_pwm")
        return _with(agent.world_model, action_dims, arguments)
    return _from_state(_find_state(contents, path), path, action_dims, arguments)


def _from_folder(path: Path, action_dims: Sequence[int] | None, arguments: Mapping[str, Any]) -> PWMWorldModel:
    if (path / WEIGHTS_FILE).is_file():
        return _from_safetensors(path / WEIGHTS_FILE, action_dims, arguments)
    if has_checkpoint(path):
        return _from_state(_find_state(load_checkpoint(path), path), path, action_dims, arguments)
    if (path / "rounds" / "world_model.pt").is_file():  # of the round that counts
        return _load(path / "rounds" / "world_model.pt", action_dims, arguments)
    rounds = sorted((path / "rounds").glob("*/world_model/world_model.pt"), key=lambda file: int(file.parts[-3]))
    found = next((path / name for name in _IN_A_RUN if (path / name).is_file()), None)
    if rounds or found:
        return _load(rounds[-1] if rounds else path / str(found and found.relative_to(path)), action_dims, arguments)
    for inner in (path, *(path / name for name in ("world_model", "model"))):
        if has_checkpoint(inner / "checkpoint"):
            return _from_folder(inner / "checkpoint", action_dims, arguments)
    raise FileNotFoundError(
        f"No world model in {path}: expected {WEIGHTS_FILE}, a checkpoint, or a run's world_model.pt or model.pt there."
    )


def _from_safetensors(path: Path, action_dims: Sequence[int] | None, arguments: Mapping[str, Any]) -> PWMWorldModel:
    if (path.parent / CONFIG_FILE).is_file():
        kinds: dict[str | None, Any] = {"PWMAgent": PWMAgent, "TDMPC2Model": TDMPC2Model}
        config = read_config(path.parent)
        kind = kinds.get(class_of(config), PWMWorldModel)
        # Such as an encoder of one's own, which no configuration holds.
        further = {key: value for key, value in arguments.items() if kind is PWMWorldModel and key not in config}
        network = load_folder(kind, path.parent, **further)
        arguments = {key: value for key, value in arguments.items() if key not in further}
        model = network if isinstance(network, PWMWorldModel) else network.world_model
        if model is None:
            raise ValueError(f"{path.parent} is an agent of SHAC, which has no world model.")
        return _with(model, action_dims, arguments)
    _, strings = read_safetensors(path)
    if "quickstart" in strings:
        return _with(PWMWorldModel.from_quickstart(path).requires_grad_(True), action_dims, arguments)
    raise DamagedFileError(
        f"{path} does not say how its model was built: expected {CONFIG_FILE} beside it, as save_pretrained writes it"
    )


def _find_state(contents: Any, path: Path) -> Mapping[str, Tensor]:
    """The state dict of the world model in what a file holds; its own prefix is taken off."""
    state = contents
    if isinstance(state, Mapping) and {"loss_module", "optimization_stepper"} <= state.keys():
        states = [state[name] for name in _COMPONENTS if isinstance(state.get(name), Mapping)]
        state = next((inner for inner in states if any("_encoder." in key for key in inner)), None)
        if state is None:
            raise ValueError(
                f"{path} is the checkpoint of a training without a world model of its own, such as that of a policy in "
                "a frozen one: name the file of that one"
            )
    elif isinstance(state, Mapping) and "model" in state:
        state = state["model"]
    if not isinstance(state, Mapping) or not state or not all(isinstance(key, str) for key in state):
        found = type(state).__name__ if state is contents else f'{{"model": {type(state).__name__}}}'
        raise DamagedFileError(f"{path} holds no world model: expected a state dict, found {found}")
    refuse_non_finite(state, path)
    nested = [key for key in state if _PREFIX in key]
    if not nested:
        return state
    prefix = nested[0][: nested[0].index(_PREFIX) + len(_PREFIX)]
    inner = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    saved = saved_arguments(state, prefix)
    return inner if saved is None else with_arguments(inner, saved)


def _from_state(
    state: Mapping[str, Tensor], path: Path, action_dims: Sequence[int] | None, given: Mapping[str, Any]
) -> PWMWorldModel:
    known = saved_arguments(state)
    if known is None and (beside := _configured(path)) is not None:
        with layout_of(path):
            known = _complete(beside, state)
    if known is None and given:
        with layout_of(path):
            known = _complete(given, state)
    elif known is not None and (wrong := [f"{k}={v}" for k, v in given.items() if k in known and known[k] != v]):
        raise ValueError(f"{path} was made with other arguments than {', '.join(wrong)}: leave them out")
    if known is not None:
        state = with_arguments(state, {**given, **known})
    elif own := [key for key in state if key.startswith("reward_moments.")]:
        raise ValueError(
            f"{path} is of an earlier version, which did not write how a model was built ({own[0]}), and no "
            f"{_RUN_CONFIG} is beside it: say it, for instance load_world_model(path, simnorm_dim=0, residual=True)"
        )
    with layout_of(path):
        return PWMWorldModel.from_tdmpc2(state, action_dims=action_dims)


def _complete(known: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """All arguments of a file that does not hold them: sizes from the weights, the rest as known."""
    weights = {key.replace("_encoder.state.", "_encoder."): value for key, value in state.items()}
    sizes = model_sizes(weights, published=False)
    rest = {key: value for key, value in known.items() if value is not None and key not in sizes}
    return {**rest, **sizes, "normalize_rewards": "reward_moments.mean" in state}


def _configured(path: Path) -> dict[str, Any] | None:
    """Arguments of the model in the configuration of the run that a file is of, or None."""
    if not (path.is_dir() or path.name in ("world_model.pt", "model.pt") or path.match("checkpoint-*.pt")):
        return None
    for folder in (path, *path.absolute().parents)[:5]:
        file = folder / _RUN_CONFIG
        if file.is_file():
            yaml: Any = require("yaml", extra="hydra", purpose=f"the configuration {file} of an earlier run")
            config = yaml.safe_load(read_yaml_text(file))
            model = config.get("model") if isinstance(config, dict) else None
            if not isinstance(model, dict) or not str(model.get("_target_")).startswith("torchrl_pwm."):
                return None
            values = {key: value for key, value in model.items() if key not in ("_target_", "preset")}
            preset = preset_sizes(model["preset"], 0) if "preset" in model else {}
            # What refers to another part of the configuration is a size, which the weights tell.
            return {**preset, **{k: v for k, v in values.items() if not (isinstance(v, str) and "${" in v)}}
    return None


def _with(model: PWMWorldModel, action_dims: Sequence[int] | None, arguments: Mapping[str, Any]) -> PWMWorldModel:
    """A model that is complete as it is; only the action sizes of its tasks may be given."""
    known = model.constructor_arguments
    if wrong := [f"{key}={value}" for key, value in arguments.items() if known.get(key) != value]:
        raise ValueError(f"The file was made with other arguments than {', '.join(wrong)}: leave them out")
    if action_dims is None:
        return model
    state = with_arguments(model.state_dict(), known)
    return PWMWorldModel.from_tdmpc2(state, action_dims=action_dims).train(model.training)
