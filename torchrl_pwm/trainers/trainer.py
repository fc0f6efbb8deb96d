"""Training loops: the log, evaluation, checkpoint and progress bar that the loop of every algorithm calls."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl import torchrl_logger
from torchrl.data import ReplayBuffer
from torchrl.objectives import LossModule
from torchrl.record.loggers import Logger
from torchrl.trainers import OptimizationStepper
from tqdm import tqdm

from torchrl_pwm._utils.checkpoint import Component, has_checkpoint, load_checkpoint, save_checkpoint
from torchrl_pwm._utils.csv_logs import MetricsLog
from torchrl_pwm._utils.devices import send
from torchrl_pwm._utils.evaluations import BackgroundEvaluation, evaluation_of
from torchrl_pwm._utils.ranges import COUNT, check_range
from torchrl_pwm._utils.seeds import TorchGenerators
from torchrl_pwm._utils.stopping import check_stop, finishing, stop_asked
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.data.sampling import ReplaySampling
from torchrl_pwm.trainers.steppers import UpdateStepper

Metrics = Mapping[str, Any]


class Trainer:
    """A training loop, which a subclass writes in :meth:`train`, with what every loop needs.

    The loop iterates over :meth:`remaining` and calls, after each update, :meth:`log`, :meth:`log_evaluation` and
    :meth:`save`, each of which acts at its own interval. With a ``save_folder``, everything that decides the next
    number is saved, and :meth:`resume` goes on from there bit for bit (on CPU; an online trainer alone may begin new
    episodes, see :class:`.OnlineTrainer`).

    Args:
        loss_module (LossModule): the objective.
        optimization_stepper (OptimizationStepper): what one iteration does to the networks.

    Keyword Args:
        iterations (int): number of iterations.
        logger (torchrl Logger, optional): for instance a ``CSVLogger``.
        log_interval, eval_interval, save_interval (int): in iterations; all three also act at the last one.
        evaluate (callable, optional): returns a mapping of named numbers; or a ``BackgroundEvaluation``.
        stopwatch (Stopwatch, optional): is part of the checkpoint; ``training_seconds``, those without evaluations,
            are logged beside the metrics.
        save_folder (path, optional): folder of the checkpoint.
        progress_bar (bool): show one, with ``progress_keys`` and the evaluation's numbers.
        on_log (callable, optional): called with the iteration and the latest number of every metric at each log.

    Raises:
        ValueError: if a number is out of range.

    Attributes:
        iteration (int): iterations begun so far.
        iterations (int): number of iterations; may be raised to train longer.
        components (dict): the parts of a checkpoint by name; further ones may be added before :meth:`resume`.
    """

    progress_keys: tuple[str, ...] = ()

    def __init__(
        self,
        loss_module: LossModule,
        optimization_stepper: OptimizationStepper,
        *,
        iterations: int,
        logger: Logger | None = None,
        log_interval: int = 100,
        evaluate: Callable[[], Metrics] | BackgroundEvaluation | None = None,
        eval_interval: int = 1000,
        stopwatch: Stopwatch | None = None,
        save_folder: str | os.PathLike[str] | None = None,
        save_interval: int = 1000,
        progress_bar: bool = True,
        on_log: Callable[[int, Metrics], object] | None = None,
    ) -> None:
        intervals = {"log_interval": log_interval, "eval_interval": eval_interval, "save_interval": save_interval}
        check_range(COUNT, iterations=iterations, **intervals)
        self.loss_module, self.optimization_stepper = loss_module, optimization_stepper
        self.iteration, self._saved, self.iterations = 0, 0, iterations
        self._log, self.log_interval = MetricsLog(logger), log_interval
        self.evaluate, self.eval_interval = evaluate, eval_interval
        self.save_folder, self.save_interval = save_folder, save_interval
        self.progress_bar, self.on_log = progress_bar, on_log
        self.stopwatch = stopwatch
        self.components: dict[str, Component] = {
            "loss_module": loss_module,
            "optimization_stepper": optimization_stepper,
            "generators": TorchGenerators(),
        }
        if stopwatch is not None:
            self.components["stopwatch"] = stopwatch
        if isinstance(evaluate, BackgroundEvaluation):
            self.components["evaluations"] = evaluate
        self.latest: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self._bar = tqdm(disable=True)

    def train(self) -> None:
        """Runs the iterations that are left.

        When none are, it says so and does nothing. With a larger number in :attr:`iterations` it goes on; the learning
        rates then stay where their schedules ended. A trainer built anew with more iterations has longer schedules: on
        :meth:`resume` its rates are those of a training that was as long from the start.
        """
        raise NotImplementedError

    def remaining(self, *, stops: bool = True) -> Iterator[int]:
        """The numbers of the iterations that are left, from 1 on, with the progress bar."""
        if self.iteration >= self.iterations:
            torchrl_logger.info(
                f"All {self.iterations} iterations are done, none are left to train: to go on, give the trainer more."
            )
        disable = not self.progress_bar or self.iteration >= self.iterations
        bar = tqdm(total=self.iterations, initial=self.iteration, disable=disable)
        with finishing(), contextlib.closing(self._log), bar as self._bar:
            while self.iteration < self.iterations:
                if stops and stop_asked():  # a signal ends the run of a command; else the caller looks
                    self.save(now=True)
                    check_stop()
                self.iteration += 1
                yield self.iteration
                self._bar.update()
        self.check()

    def due(self, interval: int) -> bool:
        """Whether something that is done every ``interval`` iterations, and at the last one, is to be done now."""
        return self.iteration % interval == 0 or self.iteration == self.iterations

    def log(self, metrics: Metrics | TensorDictBase) -> None:
        """Logs metrics every ``log_interval`` iterations."""
        if self.due(self.log_interval):
            self.check()
            self._write({str(key): float(value) for key, value in metrics.items()}, self.progress_keys, self.iteration)
            self._report()

    def log_evaluation(self, *, now: bool = False) -> None:
        """Evaluates every ``eval_interval`` iterations, or ``now``, and logs what has come of it by now."""
        evaluation = evaluation_of(self.evaluate)
        if due := evaluation.wanted and (now or self.due(self.eval_interval)):
            self.check()
            self._write({}, (), self.iteration)  # the seconds of training before it
        with self.stopwatch.evaluating() if self.stopwatch else contextlib.nullcontext():
            if due:
                evaluation.submit(self.iteration)
            found = list(evaluation.results(wait=self.iteration == self.iterations))
        for iteration, metrics in found:
            self._write({key: float(value) for key, value in metrics.items()}, tuple(metrics), iteration)
            self._report()

    def check(self) -> None:
        """Raises FloatingPointError if a stepper of ours has met a number that is not finite."""
        if isinstance(self.optimization_stepper, UpdateStepper):
            self.optimization_stepper.check()

    def _report(self) -> None:
        if self.on_log is not None:
            self.on_log(self.iteration, dict(self.latest))

    def _write(self, metrics: dict[str, float], shown: tuple[str, ...], iteration: int) -> None:
        if self.stopwatch is not None and iteration == self.iteration:
            metrics = {**metrics, "training_seconds": self.stopwatch.training_seconds}
        self._log.write(metrics, iteration)
        self.latest.update(metrics)
        self._shown |= {key: metrics[key] for key in shown if key in metrics}
        texts = {key: f"{value:.{0 if value.is_integer() else 4}f}" for key, value in sorted(self._shown.items())}
        self._bar.set_postfix_str(", ".join(f"{key}: {text}" for key, text in texts.items()))

    @property
    def save_due(self) -> bool:
        """Whether ``save_interval`` iterations have passed since the last checkpoint, or all are done."""
        return self.iteration == self.iterations or self.iteration - self._saved >= self.save_interval

    def save(self, *, now: bool = False) -> None:
        """Saves a checkpoint where one is due, or ``now`` if iterations are not saved yet."""
        if self.save_folder is not None and (self.iteration > self._saved if now else self.save_due):
            self._saved = self.iteration
            self.check()
            self.write_checkpoint(Path(self.save_folder))

    def write_checkpoint(self, folder: Path) -> None:
        """Saves the state as the folder's checkpoint."""
        save_checkpoint(folder, self.state_dict(), step=self.iteration)

    def resume(self, folder: str | os.PathLike[str] | None = None, *, required: bool = True) -> None:
        """Goes on from the checkpoint of ``folder`` (default: ``save_folder``).

        What a ``CSVLogger`` holds of later iterations is removed: they are about to be made again.

        Keyword Args:
            required (bool): whether there must be a checkpoint. If not, a run that was interrupted before its first
                one begins anew.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, or was saved with another kind of replay buffer.
        """
        source = folder if folder is not None else self.save_folder
        if source is None:
            raise ValueError("resume() needs a folder, or a trainer that was given save_folder.")
        saved = required or has_checkpoint(source)
        if saved:
            self.load_state_dict(load_checkpoint(source))
        self._log.rewind(self.iteration if saved else -1, evaluation_of(self.evaluate).iterations)

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration, **{name: part.state_dict() for name, part in self.components.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        absent = self.components.keys() - state_dict.keys()
        if missing := sorted(name for name in absent if not getattr(self.components[name], "optional", False)):
            raise ValueError(
                f"The checkpoint was saved by another kind of trainer: it has no {', '.join(missing)}. Resume with a "
                "trainer that is built as the run began."
            )
        # In checkpoints of the first 0.1.0, TorchRL's Trainer counted the iterations as frames.
        old = state_dict.get("state", {}).get("collected_frames")
        self.iteration = self._saved = state_dict["iteration"] if old is None else old
        for name, part in self.components.items():
            if name in state_dict:
                part.load_state_dict(state_dict[name])


class ReplayTrainer(Trainer):
    """A :class:`Trainer` whose batches come from a replay buffer.

    Args:
        loss_module (LossModule): the objective.
        replay_buffer (ReplayBuffer): gives batches by ``sample()``.
        optimization_stepper (OptimizationStepper): what one update does.

    Keyword Args:
        iterations (int): number of updates.
        device (optional): where batches are moved.
        save_folder (path, optional): folder of the checkpoint.
        **kwargs: see :class:`Trainer`.
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
        super().__init__(loss_module, optimization_stepper, iterations=iterations, save_folder=save_folder, **kwargs)
        self.replay_buffer = replay_buffer
        self.device = torch.device(device) if device is not None else None
        self.components["replay_sampling"] = ReplaySampling(replay_buffer, saves=save_folder is not None)

    def sample(self, replay_buffer: ReplayBuffer | None = None) -> TensorDictBase:
        """A batch of the replay buffer, or of another one, on the device."""
        return send((self.replay_buffer if replay_buffer is None else replay_buffer).sample(), self.device)
