"""Training from an env's own steps: what a collector brings goes into a replay buffer, and updates follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl._utils import logger as torchrl_logger
from torchrl.collectors import BaseCollector, Collector, MultiAsyncCollector
from torchrl.data import ReplayBuffer
from torchrl.objectives import LossModule
from torchrl.trainers import Trainer, TrainerHookBase
from tqdm import tqdm

from torchrl_pwm.envs.simulators.state import has_state, load_env, save_env
from torchrl_pwm.modules import PWMWorldModel, RunningMoments
from torchrl_pwm.trainers.trainer import UpdateTrainer

_STATISTICS_SAMPLES = 100  # batches


class CollectedSteps(TrainerHookBase):
    """Feeds the optimiser with the newest steps of a collector, and puts them into a replay buffer first.

    The buffer's contents are saved with a checkpoint. The envs' states are not, since envs in general cannot be saved:
    a resumed run begins new episodes. With an ``episode_seed`` it repeats the rest of the run, in one of two ways. The
    state of a simulator (:class:`~torchrl_pwm.SimulatorEnv`) is saved. Any other env is seeded anew, from
    ``episode_seed`` and the number of times, whenever a batch ends with the episodes of all its rows; a checkpoint of
    such a moment (:attr:`repeats`) needs no state.

    Args:
        collector (BaseCollector): a TorchRL collector in this process, or a synchronous one in several.
        replay_buffer (ReplayBuffer): is extended by ``[N, T]``.
        keys (sequence of NestedKey): the entries that are kept, where they are there.

    Keyword Args:
        episode_seed (int, optional): see above.

    Raises:
        ValueError: for an asynchronous collector, or one that splits trajectories; with an ``episode_seed``, for one in
            several processes.
    """

    def __init__(
        self, collector: BaseCollector, replay_buffer: ReplayBuffer, keys: list[Any], *, episode_seed: int | None = None
    ) -> None:
        if isinstance(collector, MultiAsyncCollector):
            raise ValueError(
                "Online training needs the steps of all envs in every batch, in the same order: use Collector or "
                "MultiSyncCollector, found MultiAsyncCollector."
            )
        if episode_seed is not None and not isinstance(collector, Collector):
            raise ValueError(
                "episode_seed, by which a resumed run repeats the rest, needs a Collector in this process, found "
                f"{type(collector).__name__}: use Collector, or leave episode_seed out."
            )
        self.collector, self.replay_buffer, self.keys = collector, replay_buffer, keys
        self.episode_seed = episode_seed
        self.env_steps = 0
        self.starts = 0
        # Whether the next batch begins with new episodes in all rows, and whether the rows' episodes end apart.
        self._at_start, self._apart = True, False
        self._batches: Iterator[TensorDictBase] | None = None

    @property
    def repeats(self) -> bool:
        """Whether a checkpoint of this moment has all that the rest of the run depends on."""
        return self.episode_seed is not None and (self._at_start or has_state(self.collector.env))

    @property
    def may_repeat(self) -> bool:
        """Whether such a moment may still come."""
        return self.episode_seed is not None and not self._apart

    def collect(self) -> TensorDictBase:
        """The next steps ``[N, T]``, which are in the replay buffer then."""
        self._begin_episodes()
        if self._batches is None:
            self._batches = iter(self.collector)
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(
                f"The collector ended after {self.env_steps} steps: build it with total_frames=-1, the trainer's "
                "iterations say when to stop."
            )
        if ("collector", "mask") in batch.keys(True):
            raise ValueError("The collector splits trajectories: build it with split_trajs=False.")
        if batch.ndim != 2:
            # One env, or several processes with batched envs: time is last.
            batch = batch.unsqueeze(0) if batch.ndim == 1 else batch.reshape(-1, batch.shape[-1])
        self.env_steps += batch.numel()
        self._note_ends(batch)
        steps = batch.select(*self.keys, strict=False)
        self.replay_buffer.extend(steps.copy())
        return batch

    def _begin_episodes(self) -> None:
        """Seeds an env whose state cannot be saved, where all its rows are at the beginning of an episode."""
        if self.episode_seed is None or not self._at_start or has_state(self.collector.env):
            return
        self.collector.env.set_seed((1_000_003 * self.episode_seed + self.starts) % 2**32)
        self.collector.reset()
        self.starts += 1

    def _note_ends(self, batch: TensorDictBase) -> None:
        done = batch.get(("next", "done"))
        self._at_start = bool(done[:, -1].all())
        self._apart |= bool(done.any()) and not self._at_start

    def sample(self, tick: TensorDictBase) -> TensorDictBase:
        # The workers of a multi-process collector act with copies of the networks.
        self.collector.update_policy_weights_()
        return self.collect()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"replay_buffer": self.replay_buffer.state_dict(), "env_steps": self.env_steps}
        if self.episode_seed is None:
            return state
        env = self.collector.env
        # Of the collector: what its policy remembers, and how many of its steps were random.
        state |= {"collector": self.collector.state_dict(), "starts": self.starts, "at_start": self._at_start}
        # The collector has no public name for the TensorDict of the step that it stands at.
        state["env"] = save_env(env, self.collector._carrier) if has_state(env) else None
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.replay_buffer.load_state_dict(state_dict["replay_buffer"])
        self.env_steps = state_dict["env_steps"]
        if self.episode_seed is None:
            return
        if "starts" not in state_dict:
            raise ValueError("The checkpoint is of a run without episode_seed: resume it without one.")
        self.collector.load_state_dict(state_dict["collector"], strict=False)
        self.starts, self._at_start = state_dict["starts"], state_dict["at_start"]
        if state_dict["env"] is not None:
            carrier = load_env(self.collector.env, state_dict["env"])
            assert carrier is not None
            self.collector._carrier = self.collector._carrier.empty().update(carrier)

    def register(self, trainer: Trainer, name: str = "collected_steps") -> None:
        trainer.register_op("process_optim_batch", self.sample)
        trainer.register_module(name, self)


class OnlineTrainer(UpdateTrainer):
    """An :class:`UpdateTrainer` on any TorchRL env: an iteration is a batch of a collector, and updates from a replay.

    Before the first, ``warmup_steps`` are collected and ``warmup_updates`` made of the model.

    Args:
        loss_module (LossModule): the objective of the policy.
        collector (BaseCollector): a TorchRL collector of the env, without an end.
        replay_buffer (ReplayBuffer): see :func:`~torchrl_pwm.data.make_online_replay`.
        optimization_stepper (OptimizationStepper): what an iteration does; its ``update_model()`` is one update from
            the replay.

    Keyword Args:
        iterations (int): number of iterations.
        warmup_steps (int): steps of all envs together before the first update, at least one batch.
        warmup_updates (int): updates of the model from them.
        normalize_observations (bool): give the model the mean and spread of the first observations it learns from,
            unless it has statistics already; see :meth:`~torchrl_pwm.PWMWorldModel.set_observation_statistics`.
            Published: no.
        episode_seed (int, optional): a run that is interrupted and resumed then ends with the numbers of one that was
            not, see :class:`~torchrl_pwm.trainers.collected.CollectedSteps`. Where that needs the beginning of an
            episode, a checkpoint that is due waits for it: batches should end where episodes end.
        **kwargs: see :class:`~torchrl_pwm.trainers.UpdateTrainer`.

    Raises:
        ValueError: for a collector that does not fit, see :class:`~torchrl_pwm.trainers.collected.CollectedSteps`.
    """

    #: The objective whose entries are kept, and of whose world model the statistics are.
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
        self.stepper = optimization_stepper
        self.steps = CollectedSteps(collector, replay_buffer, _kept_keys(self.model_loss), episode_seed=episode_seed)
        self.warmup_steps, self.warmup_updates = warmup_steps, warmup_updates
        self.normalize_observations = normalize_observations
        self._warned = False
        super().__init__(loss_module, self.steps, self.stepper, iterations=iterations, **kwargs)
        self.register_op("post_optim_complete_log", self._log_steps)
        self._reward = torch.zeros(())
        self.register_op("process_optim_batch", self._note_reward)

    @property
    def world_model(self) -> PWMWorldModel:
        """The world model that is trained."""
        return self.model_loss.world_model

    @property
    def env_steps(self) -> int:
        """Steps collected so far, of all envs together."""
        return self.steps.env_steps

    def train(self) -> None:
        """Warms up if the run is new, runs the iterations that are left, and closes the collector."""
        if self.collected_frames == 0:
            self._warm_up()
        super().train()
        self.steps.collector.shutdown()

    def save_trainer(self, force_save: bool = False) -> None:
        steps = self.steps
        if steps.episode_seed is not None and not force_save and not steps.repeats:
            if steps.may_repeat:
                return
            if not self._warned and self.save_trainer_file is not None:
                self._warned = True
                torchrl_logger.warning(
                    "The episodes of this env do not end together with a batch: a run resumed from its checkpoints "
                    "begins new episodes. Choose batches whose steps divide an episode's to have it repeat the rest."
                )
        super().save_trainer(force_save)

    def set_statistics(self, replay_buffer: ReplayBuffer) -> None:
        """Gives the model the statistics of a buffer's observations, if that is wanted and it has none."""
        model = self.world_model
        if not self.normalize_observations or model.observation_mean is not None:
            return
        moments = RunningMoments((model.observation_dim,))
        for _ in range(_STATISTICS_SAMPLES):
            seen = replay_buffer.sample().get(self.model_loss.tensor_keys.observation)
            moments.update(seen.reshape(-1, seen.shape[-1]))
        model.set_observation_statistics(moments.mean, moments.std)

    def update_model(self, updates: int, what: str) -> None:
        """Updates from the stepper's replay, with a progress bar."""
        for _ in tqdm(range(updates), desc=what, disable=not self.progress_bar or not updates):
            self.stepper.update_model()

    def _warm_up(self) -> None:
        progress = tqdm(
            total=self.warmup_steps, desc="warm-up steps", disable=not self.progress_bar or not self.warmup_steps
        )
        while not self.env_steps or self.env_steps < self.warmup_steps:
            progress.update(self.steps.collect().numel())
        progress.close()
        self.set_statistics(self.steps.replay_buffer)
        self.update_model(self.warmup_updates, "first updates")

    def _note_reward(self, batch: TensorDictBase) -> TensorDictBase:
        self._reward = batch.get(("next", self.loss_module.tensor_keys.reward)).mean()
        return batch

    def _log_steps(self, optim_steps: int, metrics: TensorDictBase) -> None:
        if optim_steps % self.metrics_interval == 0 or optim_steps == self.total_frames:
            found = {"env_steps": self.env_steps, "collected_reward": float(self._reward)}
            for key, value in found.items():
                self._log(**{key: value}, log_pbar=True)


def _kept_keys(model_loss: Any) -> list[Any]:
    keys = model_loss.tensor_keys
    return list(dict.fromkeys([*model_loss.in_keys, *(("next", key) for key in (keys.done, "terminated"))]))
