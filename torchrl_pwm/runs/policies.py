"""Policies of a run: their networks and objective, and their files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensordict.nn import TensorDictModule
from torchrl.objectives.utils import ValueEstimators

from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.door import load_weights
from torchrl_pwm.envs import TaskSpec
from torchrl_pwm.modules import DynamicsEnsemble, PWMWorldModel
from torchrl_pwm.modules.arguments import network_of_file
from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.runs.data import family
from torchrl_pwm.runs.saved import configured


def config_of_task(config: DictConfig, task: TaskSpec) -> DictConfig:
    """The configuration with the settings of loss and stepper that are those of the task's family alone."""
    chosen = {
        part: (OmegaConf.select(config, f"extraction.{part}_of") or {}).get(family(task.suite), {})
        for part in ("loss", "stepper")
    }
    return OmegaConf.merge(config, chosen)  # type: ignore[return-value]


def make_loss(
    config: Any, model: PWMWorldModel, action_dim: int, disagreement: DynamicsEnsemble | None = None
) -> PWMLoss:
    """A new actor and critics, and the objective, as configured."""
    actor = instantiate(config.actor, latent_dim=model.latent_dim, action_dim=action_dim)
    value = instantiate(config.value, latent_dim=model.latent_dim)
    loss = instantiate(config.loss, actor, value, model, disagreement=disagreement)
    hyperparameters = {"gamma": config.extraction.gamma}
    value_type = ValueEstimators[config.extraction.value_estimator]
    if value_type is ValueEstimators.TDLambda:
        hyperparameters["lmbda"] = config.extraction.lmbda
    return loss.make_value_estimator(value_type, **hyperparameters)


def save_policy(loss: PWMLoss, path: Path) -> None:
    """Writes actor and critics of a loss, as their own state dicts, to a file of tensors only."""
    save_tensors(path, {name: getattr(loss, f"{name}_network").state_dict() for name in ("actor", "value")})


def load_policy(loss: PWMLoss, path: Path) -> None:
    """Gives a loss the actor and critics that :func:`save_policy` wrote."""
    for name in ("actor", "value"):
        load_weights(getattr(loss, f"{name}_network"), path, what="policy", part=name)
    loss.restart_targets()


def policy_file(folder: Path, task: str, seed: int) -> Path:
    """Where the policy of a task and seed is, in the folder of a run or round."""
    return folder / "policies" / task / f"seed-{seed}" / "policy.pt"


def load_actor(
    config: Any, model: PWMWorldModel, folder: Path, task: str, *, seed: int | None = None
) -> TensorDictModule:
    """The policy of a task and seed, by default the first, from the folder of a run."""
    make = functools.partial(configured, config.actor, latent_dim=model.latent_dim, action_dim=model.action_dim)
    saved = policy_file(folder, task, config.seed if seed is None else seed)
    actor: TensorDictModule = network_of_file(saved, make, what="policy", part="actor")
    return actor
