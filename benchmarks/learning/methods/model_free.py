"""Runs of SAC and PPO: one env, a collector, evaluation beside baselines, and the files of every online run."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from omegaconf import DictConfig
from tensordict.nn import TensorDictSequential
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule
from torchrl.trainers import OptimizationStepper

from torchrl_pwm._utils.devices import choose_device, send
from torchrl_pwm.data import make_online_replay
from torchrl_pwm.modules import ObservationNormalizer
from torchrl_pwm.runs.cli import compose_config, show, user_errors
from torchrl_pwm.runs.evaluator import EvaluatedRun, Evaluator
from torchrl_pwm.runs.folder import open_run, running
from torchrl_pwm.runs.pwm_online import make_collector, make_training_env
from torchrl_pwm.trainers import OnlineTrainer

_CONF = Path(__file__).with_name("conf")
_PANELS = {"return of an episode": ("real_return",), "reward of a step": ("collected_reward",)}
_SAMPLES = 40  # batches that first statistics are taken from


@dataclass
class Parts:
    """Parts of a method: its objective, an actor that reads ``normalized_observation``, and its optimisation."""

    loss: LossModule
    actor: Any
    stepper: OptimizationStepper


class Method(Protocol):
    """Makes the parts of a method for an env."""

    def __call__(
        self, config: DictConfig, env: EnvBase, normalizer: ObservationNormalizer, replay: ReplayBuffer
    ) -> Parts: ...


@dataclass
class _Entries:
    """The entries of a transition that are kept."""

    in_keys: list[Any] = field(
        default_factory=lambda: ["observation", "action", ("next", "observation"), ("next", "reward")]
    )
    tensor_keys: Any = field(
        default_factory=lambda: SimpleNamespace(done="done", terminated="terminated", reward="reward")
    )
    # There is no model; its place says that observations are vectors, whose statistics can be taken.
    world_model: Any = field(default_factory=lambda: SimpleNamespace(observation_shape=(0,)))


class ModelFreeTrainer(OnlineTrainer):
    """An :class:`~torchrl_pwm.trainers.OnlineTrainer` of a policy that reads observations itself."""

    progress_keys = ("env_steps", "collected_reward", "loss_actor")

    def __init__(
        self,
        parts: Parts,
        normalizer: ObservationNormalizer,
        collector: BaseCollector,
        replay_buffer: ReplayBuffer,
        **options: Any,
    ) -> None:
        self.model_loss, self.normalizer = _Entries(), normalizer
        super().__init__(parts.loss, collector, replay_buffer, parts.stepper, **options)
        self.components["normalizer"] = normalizer

    def train(self) -> None:
        """Warms up if the run is new, runs the iterations that are left, and closes the collector."""
        if self.iteration == 0:
            self.warm_up()
        for _ in self.remaining():
            steps = self.collection.collect()
            metrics = self.optimization_stepper.step(self, steps)
            self.log_steps(steps, metrics)
            self.log_evaluation()
            self.save()
        self.close()

    def set_statistics(self, replay_buffer: ReplayBuffer) -> None:
        if self.normalize_observations:
            for _ in range(_SAMPLES):
                self.normalizer.update(send(replay_buffer.sample(), self.normalizer.moments.mean.device))


def run_model_free(config: DictConfig, folder: Path, method: Method) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    The folder is like that of :func:`~torchrl_pwm.runs.pwm_online.run_online`; ``policy.pt`` is the state dict of
    the normaliser and the actor.
    """
    summary = folder / "summary.json"
    if summary.exists():
        return summary
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    evaluator = Evaluator(config, device)
    env = make_training_env(config, device)
    normalizer = ObservationNormalizer(env.observation_spec["observation"].shape[-1]).to(device)
    replay = make_online_replay(**config.replay, seed=config.seed)
    parts = method(config, env, normalizer, replay)
    policy = TensorDictSequential(normalizer, parts.actor)
    run = EvaluatedRun(config, folder, evaluator, policy, policy)
    trainer = ModelFreeTrainer(
        parts,
        normalizer,
        make_collector(config, env, policy, device, random_steps=run.random_steps),
        replay,
        warmup_steps=config.collector.random_steps,
        episode_seed=config.seed if config.collector.workers < 2 else None,
        **run.online_options(),
    )
    with contextlib.closing(trainer):
        run.resume(trainer)
        trainer.train()
    return run.finish({"policy.pt": policy}, steps=trainer.env_steps, panels=_PANELS)


def run_script(name: str, method: Method) -> None:
    """The command line of a method: overrides of ``conf/<name>.yaml``, whose envs are those of the package."""
    with user_errors():
        config, folder = open_run(compose_config(name, sys.argv[1:], _CONF), sys.argv[1:])
        with running(folder, f"python -m benchmarks.learning.methods.{name}"):
            summary = run_model_free(config, folder, method)
        show(summary, table=False)
