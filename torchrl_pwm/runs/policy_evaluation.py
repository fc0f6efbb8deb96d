"""Evaluation of a policy that is extracted: what the model promises beside what the simulator pays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensordict import TensorDictBase
from torch import nn

from torchrl_pwm._utils.devices import torch_threads
from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm.data import TDMPC2ExperienceReplay
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.evaluation.task_episodes import SIMULATORS, TaskEpisodes
from torchrl_pwm.evaluation.trust import PROBED_STEPS, TrustProbe
from torchrl_pwm.modules import PWMWorldModel
from torchrl_pwm.runs.policies import config_of_task
from torchrl_pwm.runs.world_model import load_world_model

_SEQUENCES = 256  # of the data


def probed(
    policy: Any, played: TaskEpisodes, config: Any, episodes: int, seed: int, value_network: nn.Module | None = None
) -> TrustProbe:
    """Real episodes of a policy, and what its model and critics promise of them."""
    loss = config_of_task(config, get_task_set(config.task_set)[played.task]).loss
    return played.probe(
        policy,
        episodes,
        seed,
        value_network,
        gamma=config.extraction.gamma,
        reward_space=loss.reward_space,
        reward_scale=loss.get("reward_scale", 1.0),
        mask_actions=loss.mask_actions,
    )


def real_metrics(
    policy: Any, played: TaskEpisodes, config: Any, value_network: nn.Module | None = None
) -> dict[str, float]:
    """Return, score and success of real episodes, on seeds of the evaluation along the way, and the trust probe."""
    task, seed = get_task_set(config.task_set)[played.task], config.evaluation.seed + 1
    probe = probed(policy, played, config, config.extraction.eval_episodes, seed, value_network)
    return {
        "real_return": float(probe.returns.mean()),
        "real_score": float(np.mean(task.score(probe.returns, probe.successes))),
        **({} if probe.successes is None else {"real_success": float(probe.successes.mean())}),
        **probe.metrics(),
    }


def task_episodes(
    config: Any, task: str, model: PWMWorldModel, *, data: Path | None = None, policies: int = 1
) -> TaskEpisodes:
    """The episodes that a run's policies of a task are evaluated in; of several ``policies`` in one process, fewer
    side by side, as each keeps its simulators.
    """
    device, abreast = next(model.parameters()).device, max(1, SIMULATORS // policies)
    sequences = None if data is None else _sequences(data, task, config.seed).to(device)
    return TaskEpisodes(
        task, task_set=config.task_set, world_model=model, device=device, abreast=abreast, data=sequences
    )


def _sequences(data: Path, task: str, seed: int) -> TensorDictBase:
    """Sequences of the data beside which the model's errors on a policy's own path are measured."""
    options: dict[str, Any] = {"slice_len": max(PROBED_STEPS), "strict_length": False, "check_finite": False}
    with kept_generators():
        return TDMPC2ExperienceReplay(data, _SEQUENCES, tasks=[task], seed=seed, **options).sample()


@dataclass(frozen=True)
class RealEpisodes:
    """Evaluates the weights of an actor in real episodes, in any process.

    Args:
        config: the run's configuration as a plain dictionary.
        task: name of the task.
        world_model: file of the frozen model.
        threads: torch threads.
        policies: that are trained at once, each in a task or with a seed of its own.
        data: folder of the data set.
    """

    config: dict[str, Any]
    task: str
    world_model: Path
    threads: int
    policies: int = 1
    data: Path | None = None

    def __call__(self, snapshot: Mapping[str, Any]) -> dict[str, float]:
        """The metrics of a snapshot's weights; model and simulators are kept for the next call in this process."""
        key = (self.task, str(self.world_model), self.policies)
        if key not in _KEPT:
            _KEPT[key] = self._open()
        config, actor, value, played = _KEPT[key]
        actor.load_state_dict(snapshot["weights"])
        critics = snapshot.get("critics")  # which an interrupted run of before did not save
        if critics is not None:
            value.load_state_dict(critics)
        with torch_threads(self.threads):
            return real_metrics(actor, played, config, None if critics is None else value)

    def _open(self) -> tuple[Any, nn.Module, nn.Module, TaskEpisodes]:
        config = OmegaConf.create(self.config)
        others = (played.world_model for (_, file, _), (*_, played) in _KEPT.items() if file == str(self.world_model))
        model = next(others, None) or load_world_model(config, self.world_model)
        actor = instantiate(config.actor, latent_dim=model.latent_dim, action_dim=model.action_dim)
        value = instantiate(config.value, latent_dim=model.latent_dim)
        return config, actor, value, task_episodes(config, self.task, model, data=self.data, policies=self.policies)


# Of a worker process, whose evaluations are all of one run: what was opened, by task, world model and policies.
_KEPT: dict[tuple[str, str, int], tuple[Any, nn.Module, nn.Module, TaskEpisodes]] = {}
