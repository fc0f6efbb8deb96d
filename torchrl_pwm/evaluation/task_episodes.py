"""Whole episodes of one task, several side by side, in simulators that are kept from one evaluation to the next."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_pwm.envs import WorldModelWrapper
from torchrl_pwm.envs.side_by_side import TaskSimulators
from torchrl_pwm.envs.tasks import TaskSet
from torchrl_pwm.evaluation.results import EvaluationResult
from torchrl_pwm.evaluation.rollouts import evaluate_policy
from torchrl_pwm.evaluation.trust import TrustProbe, probe_trust

__all__ = ["TaskEpisodes"]

SIMULATORS = 12  # of a task at most, by default: each holds 20 to 30 MB


class TaskEpisodes:
    """Evaluates policies of one task; the same numbers as :func:`~torchrl_pwm.evaluate_policy` by the task's name.

    That plays one episode after the other in a new env. Here the same episodes are played side by side, which is
    several times faster, and differ as far as a policy's rounding depends on the size of its batch. The policy must
    take batches [N] and draw no random numbers.

    Args:
        task (str): name of the task.
        task_set: set whose sizes are padded to, or None for the task's own sizes.
        world_model: writes ``latent`` for policies that read it.
        device: of the env.
        abreast: simulators at most.
        data: recorded sequences beside which the model's errors are measured, see :func:`.probe_trust`.

    Examples:
        >>> from torchrl_pwm.evaluation.task_episodes import TaskEpisodes
        >>> with TaskEpisodes("pendulum-swingup") as played:
        ...     result = played.evaluate(lambda td: td.set("action", td["observation"][..., 2:].sign()), 2, seed=3)
        >>> result.episodes
        2
    """

    def __init__(
        self,
        task: str,
        *,
        task_set: str | TaskSet | None = None,
        world_model: nn.Module | None = None,
        device: torch.device | str | None = None,
        abreast: int = SIMULATORS,
        data: TensorDictBase | None = None,
    ) -> None:
        self.task, self.task_set, self.device = task, task_set, device
        self.simulators, self.abreast = TaskSimulators(task), abreast
        self.world_model: Any = world_model
        self.data = data
        self._envs: dict[int, EnvBase] = {}

    def evaluate(self, policy: Any, episodes: int, seed: int) -> EvaluationResult:
        """Episodes from the start states of a seed."""
        return evaluate_policy(policy, self._env(episodes), episodes=episodes, seed=seed)

    def probe(
        self, policy: Any, episodes: int, seed: int, value_network: nn.Module | None = None, **options: Any
    ) -> TrustProbe:
        """The same, with what the world model and the critics promise; options are those of :func:`.probe_trust`."""
        env = self._env(episodes)
        return probe_trust(
            policy, self.world_model, env, value_network, episodes=episodes, seed=seed, data=self.data, **options
        )

    def _env(self, episodes: int) -> EnvBase:
        """As many envs as divide the episodes into the fewest rounds."""
        width = -(-episodes // -(-episodes // self.abreast))
        if width not in self._envs:
            env: EnvBase = self.simulators.env(width, task_set=self.task_set, device=self.device)
            if self.world_model is not None:
                env = TransformedEnv(env, WorldModelWrapper(self.world_model))
            self._envs[width] = env
        return self._envs[width]

    def close(self) -> None:
        """Frees the simulators."""
        self._envs.clear()
        self.simulators.close()

    def __enter__(self) -> TaskEpisodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
