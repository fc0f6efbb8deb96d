"""Evaluation of a policy that is extracted: what the model promises beside what the simulator pays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm._utils.devices import torch_threads
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.evaluation.task_episodes import SIMULATORS, TaskEpisodes
from torchrl_pwm.modules import PWMWorldModel, symexp
from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.runs.world_model import load_world_model


def predicted_return(loss: PWMLoss, starts: TensorDictBase, episode_length: int) -> float:
    """Return of an episode by the mean reward that the model promises to the mean action, from start states [B]."""
    model = loss.world_model
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        noise = torch.zeros(loss.horizon, len(starts), model.action_dim, device=starts.device)
        reward = loss.imagine(starts, noise)["next", "reward"]
    if model.num_bins and loss.reward_space == "symlog":
        reward = symexp(reward)
    return float(reward.mean()) * episode_length


def real_metrics(policy: Any, played: TaskEpisodes, config: Any) -> dict[str, float]:
    """Return, score and success of real episodes, on seeds of the evaluation along the way, and the trust probe."""
    task = get_task_set(config.task_set)[played.task]
    probe = played.probe(policy, config.extraction.eval_episodes, config.evaluation.seed + 1)
    return {
        "real_return": float(probe.returns.mean()),
        "real_score": float(np.mean(task.score(probe.returns, probe.successes))),
        **({} if probe.successes is None else {"real_success": float(probe.successes.mean())}),
        **probe.metrics(),
    }


def task_episodes(config: Any, task: str, model: PWMWorldModel, *, policies: int = 1) -> TaskEpisodes:
    """The episodes that a run's policies of a task are evaluated in; of several ``policies`` in one process, fewer
    side by side, as each keeps its simulators.
    """
    device, abreast = next(model.parameters()).device, max(1, SIMULATORS // policies)
    return TaskEpisodes(task, task_set=config.task_set, world_model=model, device=device, abreast=abreast)


@dataclass(frozen=True)
class RealEpisodes:
    """Evaluates the weights of an actor in real episodes, in any process.

    Args:
        config: the run's configuration as a plain dictionary.
        task: name of the task.
        world_model: file of the frozen model.
        threads: torch threads.
        policies: that are trained at once, each in a task or with a seed of its own.
    """

    config: dict[str, Any]
    task: str
    world_model: Path
    threads: int
    policies: int = 1

    def __call__(self, snapshot: Mapping[str, Any]) -> dict[str, float]:
        """The metrics of ``snapshot["weights"]``; model and simulators are kept for the next call in this process."""
        key = (self.task, str(self.world_model), self.policies)
        if key not in _KEPT:
            _KEPT[key] = self._open()
        config, actor, played = _KEPT[key]
        actor.load_state_dict(snapshot["weights"])
        with torch_threads(self.threads):
            return real_metrics(actor, played, config)

    def _open(self) -> tuple[Any, nn.Module, TaskEpisodes]:
        config = OmegaConf.create(self.config)
        others = (played.world_model for (_, file, _), (_, _, played) in _KEPT.items() if file == str(self.world_model))
        model = next(others, None) or load_world_model(config, self.world_model)
        actor = instantiate(config.actor, latent_dim=model.latent_dim, action_dim=model.action_dim)
        return config, actor, task_episodes(config, self.task, model, policies=self.policies)


# Of a worker process, whose evaluations are all of one run: what was opened, by task, world model and policies.
_KEPT: dict[tuple[str, str, int], tuple[Any, nn.Module, TaskEpisodes]] = {}
