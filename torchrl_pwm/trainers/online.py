"""The training loop of algorithms that collect their own steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDictBase, unravel_key
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer
from torchrl.objectives import LossModule
from tqdm import tqdm

from torchrl_pwm._utils.devices import torch_threads
from torchrl_pwm._utils.ranges import COUNT_OR_NONE, check_range
from torchrl_pwm.data.collect.online import OnlineCollection
from torchrl_pwm.modules import PWMWorldModel, RunningMoments
from torchrl_pwm.trainers.trainer import Metrics, Trainer

_STATISTICS_SAMPLES = 100  # batches


class OnlineTrainer(Trainer):
    """A :class:`Trainer` on any TorchRL env, whose collected steps go into a replay buffer from which it learns.

    Before the first iteration, ``warmup_steps`` are collected, at least one batch, and ``warmup_updates`` made of the
    model.

    Args:
        loss_module (LossModule): the objective of the policy.
        collector (BaseCollector): a TorchRL collector of the env, without an end.
        replay_buffer (ReplayBuffer): see :func:`~torchrl_pwm.data.make_online_replay`.
        optimization_stepper (OptimizationStepper): what an iteration does; its ``update_model()`` is one update from
            the replay.

    Keyword Args:
        iterations (int): number of iterations.
        warmup_steps (int): steps before the first iteration, of all envs together; random ones as far as the
            collector's ``init_random_frames`` go.
        warmup_updates (int): model updates before the first iteration.
        normalize_observations (bool): give the model the statistics of the observations of the warm-up, or of the data
            set that it is pre-trained on.
        episode_seed (int, optional): seed of the envs' episodes, by which a resumed run repeats the rest; see
            :class:`~torchrl_pwm.data.OnlineCollection`.
        **kwargs: see :class:`Trainer`.

    Raises:
        ValueError: for a collector that does not fit, see
            :class:`~torchrl_pwm.data.OnlineCollection`.
    """

    #: The world-model objective: its ``in_keys`` are kept in the replay, its model gets the observation statistics.
    model_loss: Any

    def __init__(
        self,
        loss_module: LossModule,
        collector: BaseCollector,
        replay_buffer: ReplayBuffer,
        optimization_stepper: Any,
        *,
        iterations: int,
        warmup_steps: int = 0,
        warmup_updates: int = 0,
        normalize_observations: bool = False,
        episode_seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_range(COUNT_OR_NONE, warmup_steps=warmup_steps, warmup_updates=warmup_updates)
        super().__init__(loss_module, optimization_stepper, iterations=iterations, **kwargs)
        if normalize_observations and len(self.world_model.observation_shape) != 1:
            raise ValueError(
                "normalize_observations needs vectors, found a model of observations of shape "
                f"{self.world_model.observation_shape}: leave it out, its own encoder scales what it reads."
            )
        keys = self.model_loss.tensor_keys
        ends = [unravel_key(("next", key)) for key in (keys.done, keys.terminated)]
        kept = dict.fromkeys([*self.model_loss.in_keys, *ends])
        self.collection = OnlineCollection(collector, replay_buffer, list(kept), episode_seed=episode_seed)
        self.components["collected_steps"] = self.collection
        self.warmup_steps, self.warmup_updates = warmup_steps, warmup_updates
        self.normalize_observations = normalize_observations
        self._closed = False

    @property
    def world_model(self) -> PWMWorldModel:
        """The world model that is trained."""
        return self.model_loss.world_model

    @property
    def env_steps(self) -> int:
        """Steps collected so far, of all envs together."""
        return self.collection.env_steps

    def remaining(self, *, stops: bool = True) -> Iterator[int]:
        """As of every trainer.

        Raises:
            RuntimeError: if iterations are left, but the collector was closed.
        """
        if self._closed and self.iteration < self.iterations:
            raise RuntimeError(
                f"The collector was closed when train() ended after {self.iteration} iterations. To train longer, "
                "build collector and trainer anew with more iterations, and resume() from the checkpoint of this one."
            )
        return super().remaining(stops=stops)

    def close(self) -> None:
        """Closes the collector and its envs, after which there are no more iterations."""
        if not self._closed:
            self._closed = True
            with torch_threads(None):  # a collector of several processes leaves more of them than there were
                self.collection.collector.shutdown()

    def warm_up(self) -> None:
        """Collects the first steps, sets the statistics, and makes the first updates of the model."""
        hidden = not self.progress_bar or not self.warmup_steps
        with tqdm(total=self.warmup_steps, desc="warm-up steps", disable=hidden) as bar:
            while not self.env_steps or self.env_steps < self.warmup_steps:
                bar.update(self.collection.collect().numel())
        self.set_statistics(self.collection.replay_buffer)
        self.update_model(self.warmup_updates, "first updates")

    def set_statistics(self, replay_buffer: ReplayBuffer) -> None:
        """Gives the model the statistics of a buffer's observations, task by task, if that is wanted and it has none.

        Those of a task that is not there are 0 and 1.
        """
        model = self.world_model
        if not self.normalize_observations or model.observation_mean is not None:
            return
        device, keys = next(model.parameters()).device, self.model_loss.tensor_keys
        moments = [RunningMoments(model.observation_shape).to(device) for _ in range(max(model.num_tasks, 1))]
        for _ in range(_STATISTICS_SAMPLES):
            batch = replay_buffer.sample()
            observation = batch.get(keys.observation).flatten(0, -2).to(device)
            task = batch.get(keys.task).flatten().to(device) if model.num_tasks else None
            for index, each in enumerate(moments):
                each.update(observation, None if task is None else task == index)
        mean, std = (torch.stack([getattr(each, name) for each in moments]) for name in ("mean", "std"))
        model.set_observation_statistics(mean, std)

    def update_model(self, updates: int, purpose: str) -> None:
        """Updates from the stepper's replay, with a progress bar."""
        stepper: Any = self.optimization_stepper
        for _ in tqdm(range(updates), desc=purpose, disable=not self.progress_bar or not updates):
            stepper.update_model()

    def log_steps(self, steps: TensorDictBase, metrics: Metrics | TensorDictBase) -> None:
        """Logs metrics and what was collected, every ``log_interval`` iterations."""
        reward = steps.get(unravel_key(("next", self.model_loss.tensor_keys.reward))).mean()
        self.log({**dict(metrics.items()), "env_steps": self.env_steps, "collected_reward": reward})
