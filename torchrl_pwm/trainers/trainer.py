"""What the training loops share: batches, log, evaluation, checkpoint, progress."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import ReplayBuffer
from torchrl.objectives import LossModule
from torchrl.record.loggers import CSVLogger, Logger
from torchrl.trainers import OptimizationStepper, Trainer, TrainerHookBase

from torchrl_pwm._utils.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.data import ReplayMixture, TDMPC2ExperienceReplay

Evaluation = Callable[[], Mapping[str, float]]


class UpdateTicks:
    """Stands where a Trainer expects a collector: each tick is one update, so that frames count updates."""

    init_random_frames = 0

    def __iter__(self) -> Iterator[TensorDictBase]:
        while True:
            yield TensorDict({}, [1])

    def shutdown(self) -> None:
        """Nothing to close."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class ReplaySampling(TrainerHookBase):
    """Feeds the optimiser from a replay buffer, and saves where its draws stand; the data are not saved.

    Raises:
        ValueError: if draws are to be saved that cannot be: TorchRL's buffers hold batches that they read ahead, which
            only :class:`~torchrl_pwm.TDMPC2ExperienceReplay` can save without the data.
    """

    def __init__(self, replay_buffer: ReplayBuffer, device: torch.device | None, *, saves: bool = False) -> None:
        self.replay_buffer = replay_buffer
        self.device = device
        self._saves_itself = isinstance(replay_buffer, (TDMPC2ExperienceReplay, ReplayMixture))
        if saves and not self._saves_itself and getattr(replay_buffer, "_prefetch", False):
            raise ValueError(
                f"A trainer with a save_folder needs a {type(replay_buffer).__name__} without prefetch: the batches "
                "read ahead are not saved, and a resumed run would skip them. Leave prefetch out, or use "
                "TDMPC2ExperienceReplay."
            )

    def sample(self, tick: TensorDictBase) -> TensorDictBase:
        batch = self.replay_buffer.sample()
        return batch if self.device is None else batch.to(self.device)

    def state_dict(self) -> dict[str, Any]:
        buffer = self.replay_buffer
        if self._saves_itself:
            return {"buffer": buffer.state_dict()}
        generator = buffer._rng
        return {
            "sampler": buffer.sampler.state_dict(),
            "transform": buffer.transform.state_dict(),
            # Without one of its own the buffer draws from torch's global generator, which is saved beside this.
            "generator": None if generator is None else generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        buffer = self.replay_buffer
        if ("buffer" in state_dict) != self._saves_itself:
            raise ValueError(
                f"The checkpoint was saved with another kind of replay buffer, found {type(buffer).__name__}: resume "
                "with the kind of buffer that the run began with."
            )
        if self._saves_itself:
            buffer.load_state_dict(state_dict["buffer"])
            return
        generator = buffer._rng
        if (generator is None) != (state_dict["generator"] is None):
            raise ValueError(
                "The checkpoint and the replay buffer must agree on whether the buffer has a generator of its own; "
                f"found {'none' if generator is None else 'one'} in the buffer. Build it as the run began."
            )
        buffer.sampler.load_state_dict(state_dict["sampler"])
        buffer.transform.load_state_dict(state_dict["transform"])
        if generator is not None:
            generator.set_state(state_dict["generator"])

    def register(self, trainer: Trainer, name: str = "replay_sampling") -> None:
        trainer.register_op("process_optim_batch", self.sample)
        trainer.register_module(name, self)


class TorchGenerators:
    """The global torch generators as one component of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        torch.set_rng_state(state_dict["cpu"])
        if "cuda" in state_dict and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state_dict["cuda"])


class UpdateTrainer(Trainer):
    """TorchRL's :class:`~torchrl.trainers.Trainer` one update at a time, without a collector.

    One frame is one update. Metrics go to the logger and the progress bar every ``log_interval`` updates; an optional
    ``evaluate`` function adds its own every ``eval_interval``. With a ``save_folder``, everything that decides the
    next number is saved every ``save_interval`` updates, and :meth:`resume` goes on from there bit for bit (on CPU).

    Args:
        loss_module (LossModule): the objective.
        source (TrainerHookBase): makes the batch of each update, and saves where it stands.
        optimization_stepper (OptimizationStepper): what one update does.

    Keyword Args:
        iterations (int): number of updates.
        logger (torchrl Logger, optional): for instance a ``CSVLogger``.
        log_interval, eval_interval, save_interval (int): in updates.
        evaluate (callable, optional): returns a mapping of named numbers.
        stopwatch (Stopwatch, optional): is part of the checkpoint; ``training_seconds``, those without evaluations,
            are logged beside the metrics.
        save_folder (path, optional): folder of the checkpoint.
        progress_bar (bool): show one, with ``progress_keys``.
    """

    progress_keys: tuple[str, ...] = ()

    def __init__(
        self,
        loss_module: LossModule,
        source: TrainerHookBase,
        optimization_stepper: OptimizationStepper,
        *,
        iterations: int,
        logger: Logger | None = None,
        log_interval: int = 100,
        evaluate: Evaluation | None = None,
        eval_interval: int = 1000,
        stopwatch: Stopwatch | None = None,
        save_folder: str | os.PathLike[str] | None = None,
        save_interval: int = 1000,
        progress_bar: bool = True,
    ) -> None:
        super().__init__(
            collector=UpdateTicks(),
            total_frames=iterations,
            frame_skip=1,
            optim_steps_per_batch=1,
            loss_module=loss_module,
            optimization_stepper=optimization_stepper,
            logger=logger,
            log_interval=0,
            progress_bar=progress_bar,
            save_trainer_file=save_folder,
            # The Trainer saves when more than this has passed.
            save_trainer_interval=save_interval - 1,
            auto_log_optim_steps=False,
        )
        # TorchRL keeps these on the class, shared by all trainers of the process.
        self._last_log: dict[str, Any] = {}
        self.metrics_interval = log_interval
        self.evaluate, self.eval_interval = evaluate, eval_interval
        source.register(self)
        self.register_module("generators", TorchGenerators())
        self.stopwatch = stopwatch
        if stopwatch is not None:
            self.register_module("stopwatch", stopwatch)
        self.register_op("setup", self._show_progress)
        self.register_op("post_optim_complete_log", self._log_metrics)
        self.register_op("post_steps_log", self._log_evaluation)

    def train(self) -> None:
        """Runs the updates that are left."""
        if self.collected_frames < self.total_frames:
            super().train()
            if self.progress_bar:
                self._pbar.close()

    def resume(self, folder: str | os.PathLike[str] | None = None, *, required: bool = True) -> None:
        """Goes on from the checkpoint of ``folder`` (default: ``save_folder``).

        What a ``CSVLogger`` holds of later updates is removed: they are about to be made again.

        Keyword Args:
            required (bool): whether there must be a checkpoint. If not, a run that was interrupted before its first
                one begins anew.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or was saved with another kind of replay buffer.
        """
        source = folder if folder is not None else self.save_trainer_file
        if source is None:
            raise ValueError("resume() needs a folder, or a trainer that was given save_folder.")
        found = required or has_checkpoint(source)
        if found:
            state = load_checkpoint(source)
            if self.stopwatch is not None:
                # A run that began without one counts from here.
                state.setdefault("stopwatch", self.stopwatch.state_dict())
            self.load_state_dict(state)
        rewind_metrics(self.logger, self.collected_frames if found else -1)

    def _show_progress(self) -> None:
        if self.progress_bar:
            self._pbar.initial = self._pbar.n = self.collected_frames
            self._pbar.refresh()

    def _save_trainer(self) -> None:
        assert self.save_trainer_file is not None
        save_checkpoint(Path(self.save_trainer_file), self.state_dict(), step=self.collected_frames)

    def _log_metrics(self, optim_steps: int, metrics: TensorDictBase) -> None:
        if optim_steps % self.metrics_interval and optim_steps != self.total_frames:
            return
        for key, value in metrics.items():
            self._log(**{str(key): float(value)}, log_pbar=key in self.progress_keys)
        self._log_seconds()

    def _log_evaluation(self, batch: TensorDictBase) -> None:
        done = self.collected_frames
        if done % self.eval_interval == 0 or done == self.total_frames:
            self.log_evaluation()

    def log_evaluation(self) -> None:
        """Calls ``evaluate`` now, and logs what it returns at the current step."""
        if self.evaluate is not None:
            self._log_seconds()
            with self.stopwatch.evaluating() if self.stopwatch else contextlib.nullcontext():
                found = self.evaluate()
            for key, value in found.items():
                # TorchRL's Trainer logs nothing before the first step.
                self._last_log.setdefault(key, -1)
                self._log(**{key: float(value)}, log_pbar=True)

    def _log_seconds(self) -> None:
        if self.stopwatch is not None:
            self._last_log.setdefault("training_seconds", -1)
            self._log(training_seconds=self.stopwatch.training_seconds)


class ReplayTrainer(UpdateTrainer):
    """An :class:`UpdateTrainer` whose batches come from a replay buffer.

    Args:
        loss_module (LossModule): the objective.
        replay_buffer (ReplayBuffer): gives batches by ``sample()``.
        optimization_stepper (OptimizationStepper): what one update does.

    Keyword Args:
        iterations (int): number of updates.
        device (optional): where batches are moved.
        save_folder (path, optional): folder of the checkpoint.
        **kwargs: see :class:`UpdateTrainer`.
    """

    def __init__(
        self,
        loss_module: LossModule,
        replay_buffer: ReplayBuffer,
        optimization_stepper: OptimizationStepper,
        *,
        iterations: int,
        device: torch.device | str | None = None,
        save_folder: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        place = torch.device(device) if device is not None else None
        source = ReplaySampling(replay_buffer, place, saves=save_folder is not None)
        super().__init__(
            loss_module, source, optimization_stepper, iterations=iterations, save_folder=save_folder, **kwargs
        )


def rewind_metrics(logger: Logger | None, step: int) -> None:
    """Removes the rows of steps after ``step``, and a last row cut short, from a CSVLogger's files.

    Other loggers keep what they were told; their backends show the later value of a step.
    """
    if not isinstance(logger, CSVLogger):
        return
    open_files = logger.experiment.files
    for file in Path(logger.experiment.log_dir).glob("scalars/**/*.csv"):
        rows = file.read_text().splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and int(row.split(",")[0]) <= step]
        if len(kept) < len(rows):
            # An open file would go on writing to the one that is replaced.
            if (stream := open_files.pop(str(file), None)) is not None:
                stream.close()
            replace_file(file, "".join(kept).encode())
