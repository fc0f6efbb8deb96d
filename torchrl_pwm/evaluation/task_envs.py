"""Envs of tasks that are kept from one evaluation to the next."""

from __future__ import annotations

from typing import Any

from torchrl.envs import EnvBase

from torchrl_pwm._utils.devices import device_of
from torchrl_pwm.envs import make_task_env, make_task_envs
from torchrl_pwm.envs.tasks import TaskSet, get_task_set
from torchrl_pwm.evaluation.results import EvaluationResult
from torchrl_pwm.evaluation.rollouts import evaluate_policy

__all__ = ["TaskEnvs"]

_SIMULATORS = 24  # kept at most, by default: each holds 20 to 30 MB


class TaskEnvs:
    """Evaluates policies by the names of tasks; the same numbers as :func:`~torchrl_pwm.evaluate_policy`, bit for bit.

    That builds the simulators of a task anew at each call, which takes longer than an episode of Meta-World. Here they
    are built at the first call for a task, and kept for the next ones as far as ``simulators`` goes; those of further
    tasks are built anew each time. Resident memory then stays where it is (``benchmarks/reliability/memory.py``).

    Args:
        simulators (int): how many are kept at most, of all tasks together.

    Examples:
        >>> from torchrl_pwm.evaluation.task_envs import TaskEnvs
        >>> swing = lambda td: td.set("action", td["observation"][..., 2:].sign())
        >>> with TaskEnvs() as envs:
        ...     results = [envs.evaluate(swing, "pendulum-swingup", episodes=2, seed=seed) for seed in (0, 1)]
        ...     len(results), len(envs)
        (2, 1)
    """

    def __init__(self, simulators: int = _SIMULATORS) -> None:
        self.simulators = simulators
        self._envs: dict[tuple[Any, ...], EnvBase] = {}

    def __len__(self) -> int:
        """Simulators that are kept."""
        return sum(max(env.batch_size.numel(), 1) for env in self._envs.values())

    def __getstate__(self) -> dict[str, Any]:
        """Without the envs, which another process builds for itself."""
        return {**vars(self), "_envs": {}}

    def evaluate(
        self,
        policy: Any,
        task: str,
        *,
        episodes: int,
        seed: int,
        num_envs: int = 1,
        task_set: str | TaskSet | None = None,
    ) -> EvaluationResult:
        """Whole episodes of a policy, ``num_envs`` of them side by side; the arguments are those of
        :func:`~torchrl_pwm.evaluate_policy`.
        """
        options: dict[str, Any] = {"task_set": task_set, "episodes": episodes, "seed": seed}
        env = self._env(task, num_envs, task_set, device_of(policy))
        if env is None:
            return evaluate_policy(policy, task, num_envs=num_envs, **options)
        return evaluate_policy(policy, env, task=task, **options)

    def _env(self, task: str, num_envs: int, task_set: str | TaskSet | None, device: Any) -> EnvBase | None:
        """The env of a task; None where no more simulators are to be kept."""
        table = None if task_set is None else get_task_set(task_set)
        key = (task, num_envs, table, str(device))
        if key not in self._envs:
            if len(self) + num_envs > self.simulators:
                return None
            options: dict[str, Any] = {"task_set": table, "device": device}
            several = num_envs > 1
            self._envs[key] = make_task_envs(task, num_envs, **options) if several else make_task_env(task, **options)
        return self._envs[key]

    def close(self) -> None:
        """Frees the simulators."""
        while self._envs:
            self._envs.popitem()[1].close(raise_if_closed=False)

    def __enter__(self) -> TaskEnvs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
