"""Loading of the policy that a finished run left behind, of any kind of run."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor

from torchrl_pwm._utils.devices import choose_device
from torchrl_pwm._utils.door import making, read_tensors
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.modules import TDMPC2Model, TrainedPolicy, WorldModelPolicy, load_world_model
from torchrl_pwm.modules.arguments import build_for
from torchrl_pwm.runs.folder import kind_of_run
from torchrl_pwm.runs.saved import configured, read_config

Make = Callable[[], TrainedPolicy]

_EPISODE_LENGTH = 500  # of a model whose discounts follow from its file


def load_policy(
    run: str | os.PathLike[str],
    device: torch.device | str | None = None,
    *,
    task: str | None = None,
    seed: int | None = None,
    plan: bool | None = None,
    targets: Sequence[str] = (),
) -> TrainedPolicy:
    """The policy of a finished run, to act with: ``policy(observation=observation)``, or in ``env.rollout``.

    Neither the run's simulator nor its data are needed. Nothing in its files is executed.

    Args:
        run: the folder of a finished run of any command, or the file of one of its final policies.
        device: where it acts. Default: the GPU if there is one.

    Keyword Args:
        task (str, optional): of a run of many tasks, the one whose policy is wanted. May be left out where there is
            one. A multi-task TD-MPC2 model without it acts in all its tasks, by the entry ``task``.
        seed (int, optional): of several seeds of a task, the one whose policy is wanted. Default: the first.
        plan (bool, optional): of a TD-MPC2 run, whether to plan; False acts with the policy prior. Default: as the
            run was evaluated.
        targets (sequence of str, optional): what of your own the run's configuration may name, such as the function
            that makes the encoder of its world model. Of its own accord it names parts of this package only.

    Returns:
        A :class:`~torchrl_pwm.modules.TrainedPolicy`, which acts deterministically unless it is asked to explore. Of
        one of many tasks it reads the task's own observation; beside an entry ``task``, a padded one.

    Raises:
        FileNotFoundError: if there is no run in the folder, or it has not ended with a policy.
        DamagedFileError: if one of its files is damaged, or its configuration names anything else.
        ValueError: for a task or a seed that the run has not, or several tasks of which none is named; for a file of
            another kind, or one of another task or seed than those given; for a run that has no policy, and where an
            encoder of your own cannot be built.
        TypeError: for an argument of another kind.

    Examples:
        >>> policy = load_policy("runs/2026-11-21_Hopper-v5")  # doctest: +SKIP
        >>> env.rollout(1000, policy)  # doctest: +SKIP
    """
    _check_arguments(task=task, seed=seed, plan=plan, targets=targets)
    folder, named = _find_run(Path(run))
    for key, given in (("task", task), ("seed", seed)):
        if given is not None and named.get(key, given) != given:
            raise ValueError(f"{run} is the policy of {key} {named[key]}, found {key}={given!r} beside it.")
    task, seed = named.get("task", task), named.get("seed", seed)
    config = read_config(folder, targets=targets, simulator=False)
    kind = kind_of_run(config)
    load = _OF_MANY_TASKS.get(kind)
    if load is None and kind not in _LOADERS:
        raise ValueError(f"The run in {folder} is one of {kind}, which makes no policy: name that of another command.")
    if load is None and task not in (None, config.get("task")):
        raise ValueError(f"The run in {folder} is of {config.task} alone, found task={task}.")
    with making("policy", folder):
        if load is not None:
            make = load(config, folder, task=task, seed=seed, plan=plan)
        else:
            make = _LOADERS[kind](config, folder, plan)
    policy = make()  # of parts that were read: what fails here is no damage
    return policy.requires_grad_(False).eval().to(choose_device(None if device is None else str(device)))


def _check_arguments(**given: Any) -> None:
    """Refuses what would look like the fault of a file later on."""
    kinds: dict[str, tuple[type, ...]] = {"task": (str,), "seed": (int,), "plan": (bool,)}
    for name, kind in kinds.items():
        if given[name] is not None and not isinstance(given[name], kind):
            raise TypeError(f"{name} must be a {kind[0].__name__} or None, found {given[name]!r}.")
    targets = given["targets"]
    if isinstance(targets, str) or not all(isinstance(target, str) for target in targets):
        raise TypeError(f"targets must be a list of names, found {targets!r}.")


def _find_run(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the run that a folder or a file of it belongs to; with the task and seed that a file is of."""
    if not path.is_file():
        return path, {}
    for folder in path.parents:
        if (folder / "config.yaml").exists():
            inside = path.relative_to(folder).as_posix()
            found = re.fullmatch(r"(model\.pt|policy\.pt|policies/([^/]+)/(?:seed-(\d+)/)?policy\.pt)", inside)
            if found is None:
                raise ValueError(
                    f"{inside} is none of the final policies of the run in {folder}: expected its folder, or a file "
                    "such as policies/TASK/seed-0/policy.pt in it."
                )
            task, seed = found[2], found[3]
            named: dict[str, Any] = {} if task is None else {"task": task}
            return folder, named if seed is None else {**named, "seed": int(seed)}
    raise FileNotFoundError(f"{path} is not in the folder of a run: expected config.yaml in a folder above it.")


def _read(folder: Path, name: str, config: Any) -> dict[str, Tensor]:
    """The tensors of a file that a run writes at its end."""
    if not (folder / name).exists():
        raise FileNotFoundError(
            f"No policy in {folder}: expected the folder of a finished run, with {name}. A run that was interrupted "
            f"goes on with: torchrl-pwm {kind_of_run(config)} resume={folder}"
        )
    return read_tensors(folder / name, what="policy", finite=True)


def _build(weights: Mapping[str, Tensor], config: DictConfig, **sizes: Any) -> Any:
    """A network as configured, if it is for as many weights as there are."""
    return build_for(weights, functools.partial(configured, config), sizes)


def _own_encoder(config: DictConfig) -> dict[str, Any]:
    """The encoder of a user's own, which runs their code: an error in it is none of the file."""
    encoder = config.model.get("encoder")
    if not encoder:
        return {}
    try:
        return {"encoder": configured(encoder)}
    except Exception as error:
        raise ValueError(f"The encoder {encoder.get('_target_')} of the run was not built: {error!r}") from error


def _load_online(config: DictConfig, folder: Path, plan: bool | None) -> Make:
    weights = _read(folder, "policy.pt", config)
    model = load_world_model(folder / "world_model.pt", **_own_encoder(config))
    sizes: Any = {"observation_dim": model.observation_dim, "action_dim": model.action_dim}
    network = _build(weights, config.actor, latent_dim=model.latent_dim, action_dim=sizes["action_dim"])
    network.load_state_dict(weights)
    return lambda: TrainedPolicy(WorldModelPolicy(model, network), **sizes, task_name=config.task)


def _load_shac(config: DictConfig, folder: Path, plan: bool | None) -> Make:
    weights = _read(folder, "policy.pt", config)
    first = next(value for name, value in weights.items() if name.endswith("mu_net.0.weight"))
    sizes: Any = {"observation_dim": first.shape[1], "action_dim": _actions(weights)}
    normalizer = None
    if config.normalize_observations:
        normalizer = configured(config.normalizer, observation_dim=sizes["observation_dim"])
    key = "observation" if normalizer is None else normalizer.out_keys[0]
    actor = _build(weights, config.actor, latent_dim=first.shape[1], action_dim=sizes["action_dim"], in_key=key)
    policy: TensorDictModuleBase = actor if normalizer is None else TensorDictSequential(normalizer, actor)
    policy.load_state_dict(weights)
    return lambda: TrainedPolicy(policy, **sizes, task_name=config.task)


def _load_online_tdmpc2(config: DictConfig, folder: Path, plan: bool | None) -> Make:
    weights = _read(folder, "model.pt", config)
    last = [value for name, value in weights.items() if name.startswith("policy.") and value.ndim == 2][-1]
    sizes: Any = {
        "observation_dim": weights["world_model._encoder.0.weight"].shape[1],
        "action_dim": last.shape[0] // 2,
    }
    options = {
        "episode_lengths": config.heads.episode_lengths or _EPISODE_LENGTH,
        "episodic": any("termination" in name for name in weights),
    }

    def make(**arguments: Any) -> TDMPC2Model:
        model: TDMPC2Model = configured(config.heads, configured(config.model, **arguments), **options)
        return model

    model = build_for(weights, make, sizes, **_own_encoder(config))
    model.load_state_dict(weights)
    planner = configured(config.planner, model, plan=config.evaluation.plan if plan is None else plan)
    return lambda: TrainedPolicy(planner, **sizes, task_name=config.task)


_LOADERS = {"online": _load_online, "shac": _load_shac, "tdmpc2-online": _load_online_tdmpc2}


def _load_extracted(config: DictConfig, folder: Path, *, task: str | None, seed: int | None, plan: bool | None) -> Make:
    """A policy of a run of PWM on many tasks."""
    from torchrl_pwm.runs.policies import load_actor
    from torchrl_pwm.runs.world_model import load_world_model as load_configured
    from torchrl_pwm.runs.world_model import world_model_of_run

    found = sorted((folder / "policies").glob("*/seed-*/policy.pt"))
    tasks = list(dict.fromkeys(file.parts[-3] for file in found))
    if not tasks:
        raise FileNotFoundError(
            f"No policy in {folder}: expected the folder of a finished run, with policies/TASK/seed-N/policy.pt. A run "
            f"that was interrupted goes on with: torchrl-pwm {kind_of_run(config)} resume={folder}"
        )
    task = _choose(folder, "task", task, tasks)
    seeds = sorted(int(file.parts[-2].removeprefix("seed-")) for file in found if file.parts[-3] == task)
    seed = _choose(folder, "seed", seeds[0] if seed is None else seed, seeds)
    model = load_configured(config, world_model_of_run(config, folder, task))
    actor = load_actor(config, model, folder, task, seed=seed)
    return _of_task(WorldModelPolicy(model, actor), model, config, task)


def _load_recorded(config: DictConfig, folder: Path, *, task: str | None, seed: int | None, plan: bool | None) -> Make:
    """A policy of a run on recorded data."""
    task = _choose(folder, "task", task, list(config.tasks))
    several = len(config.tasks) > 1
    weights = _read(folder, f"policies/{task}/policy.pt" if several else "policy.pt", config)
    model = load_world_model(folder / "world_model.pt")
    network = _build(weights, config.actor)
    network.load_state_dict(weights)
    sizes: Any = {"observation_dim": model.observation_dim, "action_dim": model.action_dim}
    own = config.tasks[task]
    if model.num_tasks:
        sizes |= {"task": own.index, "task_sizes": (own.observation_dim, own.action_dim)}
    if own.action_low is not None:
        sizes["action_bounds"] = tuple([float(bound) for bound in side] for side in (own.action_low, own.action_high))
    return lambda: TrainedPolicy(WorldModelPolicy(model, network), **sizes, task_name=task)


def _load_offline_tdmpc2(
    config: DictConfig, folder: Path, *, task: str | None, seed: int | None, plan: bool | None
) -> Make:
    """The planner of a multi-task TD-MPC2 run, or its policy prior, for one task or all."""
    from torchrl_pwm.runs.data import select_tasks
    from torchrl_pwm.runs.tdmpc2_offline import load_tdmpc2, model_of_run

    tasks = select_tasks(config.task, get_task_set(config.task_set))
    model = load_tdmpc2(config, model_of_run(config, folder), tasks)
    if task is not None or len(tasks) == 1:
        task = _choose(folder, "task", task, tasks)
    planner = configured(config.planner, model, plan=config.plan if plan is None else plan)
    return _of_task(planner, model.world_model, config, task)


_OF_MANY_TASKS = {"mt80": _load_extracted, "tdmpc2-mt80": _load_offline_tdmpc2, "offline": _load_recorded}


def _of_task(policy: TensorDictModuleBase, model: Any, config: DictConfig, task: str | None) -> Make:
    sizes: Any = {"observation_dim": model.observation_dim, "action_dim": model.action_dim}
    if task is None or not model.num_tasks:
        return lambda: TrainedPolicy(policy, **sizes, task_name=task)
    spec = get_task_set(config.task_set)[task]
    own = (spec.observation_dim, spec.action_dim)
    return lambda: TrainedPolicy(policy, **sizes, task=spec.index, task_name=task, task_sizes=own)


def _choose(folder: Path, name: str, wanted: Any, there: list[Any]) -> Any:
    """The one that is wanted, or the only one there is."""
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted is None:
        raise ValueError(f"The run in {folder} has several policies: choose one with {name}=, of {there}.")
    if wanted not in there:
        raise ValueError(f"The run in {folder} has no policy of {name}={wanted}, only of {there}.")
    return wanted


def _actions(actor: Mapping[str, Tensor]) -> int:
    """Size of the action that an actor's weights are for: it has a standard deviation for each entry."""
    return next(value for name, value in actor.items() if name.endswith("logstd")).shape[0]
