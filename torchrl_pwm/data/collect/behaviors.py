"""Behaviours that make episodes: random actions, scripted experts, SAC, or a policy of the user's."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm._utils.devices import device_of
from torchrl_pwm._utils.seeds import seeded
from torchrl_pwm.data.collect.sac import SACConfig, sac_episodes
from torchrl_pwm.data.store.episodes import Episode, EpisodeRecorder
from torchrl_pwm.envs.multitask import make_task_env
from torchrl_pwm.envs.scripted import ScriptedPolicy
from torchrl_pwm.envs.tasks import TaskSet, TaskSpec

__all__ = ["BEHAVIORS", "PADDING", "Behavior", "Noise", "TaskJob", "task_episodes"]

Behavior = Literal["random", "scripted", "sac", "policy"]
BEHAVIORS: tuple[str, ...] = ("random", "scripted", "sac", "policy")
Noise = float | Literal["random"]
DEFAULT_NOISE: Mapping[str, tuple[Noise, ...]] = {
    "random": (),
    "scripted": (0.0, 0.1, 0.3, 0.6, "random"),
    "sac": (),
    "policy": (0.0,),
}

# places of the independent streams of a task
_ENV, _ACTIONS, _LEARNER, _POLICY, PADDING = range(5)


@dataclasses.dataclass(frozen=True)
class TaskJob:
    """Everything that decides the episodes of one task.

    Args:
        task: task name.
        table: task set whose sizes are stored.
        behavior: how actions are chosen.
        episodes: number of episodes.
        seed: seed of the whole collection.
        noise: noise levels that the episodes cycle through: standard deviations, or ``"random"`` for uniform actions.
        sac: settings of SAC.
        policy: policy of the user's, with what makes its inputs.
        transform: env transform that the policy needs.
    """

    task: str
    table: TaskSet
    behavior: Behavior
    episodes: int
    seed: int
    noise: tuple[Noise, ...] = ()
    sac: SACConfig = dataclasses.field(default_factory=SACConfig)
    policy: TensorDictModuleBase | None = None
    transform: Any = None

    @property
    def spec(self) -> TaskSpec:
        return self.table[self.task]

    def record(self) -> dict[str, Any]:
        """What the manifest says about the job; two jobs with one record give the same bytes."""
        record: dict[str, Any] = {"behavior": self.behavior, "episodes": self.episodes, "seed": self.seed}
        if self.noise:
            record["noise"] = list(self.noise)
        if self.behavior == "sac":
            record["sac"] = {**dataclasses.asdict(self.sac), "units": list(self.sac.units)}
        if self.behavior == "policy":
            record["policy"] = _digest(cast(nn.Module, self.policy))
            record["transform"] = None if self.transform is None else _digest(self.transform)
        return record

    def stream(self, *key: int) -> np.random.SeedSequence:
        """An independent stream of the task; it does not depend on which other tasks are collected."""
        name = int.from_bytes(hashlib.sha256(self.task.encode()).digest()[:4], "little")
        return np.random.SeedSequence(self.seed, spawn_key=(name, *key))

    @property
    def env_seed(self) -> int:
        """Seed of the env in which the episodes are made."""
        return self.number(_ENV)

    def number(self, *key: int) -> int:
        """A seed from an independent stream."""
        return int(self.stream(*key).generate_state(1, np.uint32)[0])


def task_episodes(job: TaskJob) -> Iterator[Episode]:
    """The episodes of a job, one after the other."""
    padded = job.behavior in ("policy", "scripted")
    # Observations come to where the policy reads them, and its transform.
    place = device_of(job.policy)
    env: EnvBase = make_task_env(job.task, task_set=job.table if padded else None, seed=job.env_seed, device=place)
    if job.behavior == "policy" and job.transform is not None:
        env = TransformedEnv(env, job.transform.clone())
    try:
        if job.behavior == "sac":
            yield from sac_episodes(
                env,
                job.sac,
                episodes=job.episodes,
                length=job.spec.episode_length,
                discount=job.spec.discount,
                seed=job.number(_LEARNER),
            )
        else:
            for number in range(job.episodes):
                yield _episode(job, env, number)
    finally:
        env.close()


def _episode(job: TaskJob, env: EnvBase, number: int) -> Episode:
    """One episode of a behaviour that does not learn."""
    draws = np.random.default_rng(job.stream(_ACTIONS, number))
    level: Noise = job.noise[number % len(job.noise)] if job.noise else "random"
    recorder = EpisodeRecorder(env.reset(), job.task)
    act = _actor(job, level, draws, env.action_spec.shape[-1])
    # a policy may sample with torch's global generator: give the episode a stream of its own
    with (
        seeded(job.number(_POLICY, number)),
        torch.no_grad(),
        set_exploration_type(ExplorationType.DETERMINISTIC),
    ):
        for _ in range(job.spec.episode_length):
            recorder.step(env, act(recorder.td))
    return recorder.episode()


def _actor(
    job: TaskJob, level: Noise, draws: np.random.Generator, width: int
) -> Callable[[TensorDictBase], torch.Tensor]:
    """Chooses actions [A] for one episode."""
    if level == "random":
        return lambda td: torch.from_numpy(draws.uniform(-1.0, 1.0, width).astype(np.float32))
    if job.behavior == "scripted":
        expert = ScriptedPolicy(job.task, noise=level, generator=draws, task_set=job.table)
        return lambda td: expert(td.clone(recurse=False))["action"]
    policy = cast(TensorDictModuleBase, job.policy)

    def act(td: TensorDictBase) -> torch.Tensor:
        action = policy(td.clone(recurse=False))["action"].detach().to(device="cpu", dtype=torch.float32)
        if action.shape != (width,):
            raise ValueError(
                f"the policy wrote an action of shape {tuple(action.shape)} for {job.task}, expected ({width},)"
            )
        if not bool(action.isfinite().all()):
            raise ValueError(  # the clamp would make an infinity the largest action
                f"the policy wrote the action {action.tolist()} for {job.task}, expected finite numbers: look for a "
                "NaN in its weights"
            )
        noise = torch.from_numpy(draws.standard_normal(width).astype(np.float32))
        return (action + level * noise).clamp(-1.0, 1.0)

    return act


def _digest(module: nn.Module) -> str:
    """Identity of a module: its type and the bytes of its parameters and buffers."""
    digest = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
            digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checked_noise(behavior: str, noise: Sequence[Noise] | None) -> tuple[Noise, ...]:
    """Noise levels of a behaviour.

    Raises:
        ValueError: for a level that is neither a standard deviation nor ``"random"``.
    """
    levels = DEFAULT_NOISE[behavior] if noise is None or behavior in ("random", "sac") else tuple(noise)
    for level in levels:
        if level != "random" and (isinstance(level, str) or not 0.0 <= level < float("inf")):
            raise ValueError(f"a noise level is a standard deviation of at least 0 or 'random', found {level!r}")
    if not levels and behavior in ("scripted", "policy"):
        raise ValueError("noise needs at least one level; (0.0,) is no noise")
    return levels
