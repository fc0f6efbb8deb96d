"""Envs that are built by the name of a task: the names that there are, and ``num_workers``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torchrl_pwm._utils.torchrl_private import EnvMeta
from torchrl_pwm.envs.batched import batched_env
from torchrl_pwm.envs.multitask import checked_seed


def check_task(task: str, known: Iterable[str]) -> None:
    """Raises ValueError for a task that is none of the known ones."""
    if task not in known:
        raise ValueError(f"unknown task {task!r}; expected one of {', '.join(map(repr, known))}")


class NamedEnvMeta(EnvMeta):
    """``XEnv(task, num_envs, num_workers=W)`` is a ``ParallelEnv`` of W such envs, as for TorchRL's own wrappers."""

    def __call__(cls, *args: Any, num_workers: int = 1, **kwargs: Any) -> Any:
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 1:
            raise ValueError(f"num_workers must be an integer of at least 1, found {num_workers!r}")
        if num_workers == 1:
            return super().__call__(*args, **kwargs)
        if not isinstance(args[0] if args else kwargs.get("task"), str):
            raise ValueError(
                f"num_workers={num_workers} needs an env that is built by the name of its task: a simulator that is "
                f"built already cannot be sent to workers. Use ParallelEnv({num_workers}, make_env)"
            )
        if kwargs.get("requires_grad"):
            raise ValueError(
                f"num_workers={num_workers} needs requires_grad=False, as what worker processes return has no graph: "
                "raise num_envs instead"
            )
        seed = checked_seed(kwargs.pop("seed", 0))
        # Not metadata_from_workers: a wrong argument is then an error of this process, and reads like one.
        env = batched_env(num_workers, partial(cls, *args, **kwargs), parallel=True)
        env.set_seed(seed)
        return env
