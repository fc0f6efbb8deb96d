"""Trainings of PWM policies on one frozen world model, run as one program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from tqdm import tqdm

from torchrl_pwm._utils.evaluations import BackgroundEvaluation
from torchrl_pwm._utils.seeds import OwnGenerators
from torchrl_pwm._utils.stopping import check_stop, stop_asked
from torchrl_pwm._utils.stopwatch import SharedStopwatch
from torchrl_pwm.trainers.pwm import PWMTrainer
from torchrl_pwm.trainers.stacked import StackedPWMUpdate
from torchrl_pwm.trainers.steppers import first_states

__all__ = ["own_generators", "train_together"]


def own_generators(trainer: PWMTrainer) -> OwnGenerators:
    """Torch's generators of a trainer that is trained together with others.

    Those that it draws from are made at the first call, where the global ones are then, and are part of its checkpoint
    in place of these.
    """
    generators = trainer.components["generators"]
    if not isinstance(generators, OwnGenerators):
        generators = trainer.components["generators"] = OwnGenerators()
    return generators


def train_together(
    trainers: Sequence[PWMTrainer],
    *,
    at_end: Callable[[PWMTrainer], object] = lambda trainer: None,
    check_interval: int | None = None,
    name: str = "",
) -> None:
    """Runs the updates that are left of several trainings, each with the numbers of :meth:`.PWMTrainer.train` alone.

    Each has networks, optimiser states, return scale, schedules, start states, generators, log, evaluations and
    checkpoints of its own; the files are those of a training alone, and may be resumed alone or in other company. Those
    that are behind, since they were interrupted earlier, catch up first.

    One whose numbers are not finite stops as it would alone, and the others go on to their end.

    Args:
        trainers (sequence of PWMTrainer): on one world model, with the same options but for learning rates, and batches
            of one size. Each draws from :func:`own_generators`.

    Keyword Args:
        at_end (callable): called with each training that has come to its end, among its own generators.
        check_interval (int, optional): updates after which the device is read for numbers that are not finite; default
            1 on a CPU, 16 elsewhere. Before anything is logged, evaluated or saved it is read in any case.
        name (str): of a progress bar over all updates; empty for none.

    Raises:
        ValueError: if they differ in what must be the same.
        FloatingPointError: when all others have ended, if a number of some was not finite; names update and task.
    """
    errors: list[FloatingPointError] = []
    left = sum(trainer.iterations - trainer.iteration for trainer in trainers)
    with tqdm(total=left, desc=name, unit="update", disable=not name) as bar:
        active = _still_running(trainers, at_end)
        while active:
            first = min(trainer.iteration for trainer in active)
            group = [trainer for trainer in active if trainer.iteration == first]
            ahead = [trainer.iteration for trainer in active if trainer.iteration > first]
            until = min([*ahead, *(trainer.iterations for trainer in group)])
            failed = _Group(group, check_interval, bar).train(until)
            errors += failed.values()
            active = _still_running([trainer for trainer in active if trainer not in failed], at_end)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise FloatingPointError(f"{len(errors)} of {len(trainers)} trainings stopped. " + " ".join(map(str, errors)))


def _still_running(trainers: Iterable[PWMTrainer], at_end: Callable[[PWMTrainer], object]) -> list[PWMTrainer]:
    running = []
    for trainer in trainers:
        if trainer.iteration < trainer.iterations:
            running.append(trainer)
        else:
            with own_generators(trainer):
                at_end(trainer)
    return running


class _Group:
    """Trainings at the same iteration."""

    def __init__(self, trainers: Sequence[PWMTrainer], check_interval: int | None, bar: tqdm) -> None:
        self.trainers, self.bar = list(trainers), bar
        self.device = next(trainers[0].loss_module.actor_network.parameters()).device
        self.check_interval = check_interval or (1 if self.device.type == "cpu" else 16)
        self.unchecked = 0

    def train(self, until: int) -> dict[PWMTrainer, FloatingPointError]:
        """Updates until an iteration, or until a training has failed; returns these with their errors."""
        update = StackedPWMUpdate([trainer.optimization_stepper for trainer in self.trainers])
        failed: dict[PWMTrainer, FloatingPointError] = {}
        try:
            steps = [trainer.remaining(stops=False) for trainer in self.trainers]
            while self.trainers[0].iteration < until and not failed:
                if stop_asked():
                    self._stop()
                start = time.perf_counter()
                for step in steps:
                    next(step)
                metrics = update.update(*self._draw())
                failed = self._failed(update)
                self._share(time.perf_counter() - start)
                self._follow(metrics, failed)
        finally:
            update.release()
        return failed

    def _stop(self) -> None:
        """Saves them all, between two iterations, and ends the run as the signal says."""
        for trainer in self.trainers:
            with own_generators(trainer):
                trainer.save(now=True)
        check_stop()

    def _draw(self) -> tuple[TensorDictBase, Tensor, Tensor | None, TensorDictBase | None]:
        """Start states [T, B], noise [H, T, B, A], of a model with several heads their order [T, K], and recorded
        sequences [T, N, H] where critics learn from them, each task's from its own generators."""
        batches, noises, orders, recorded = [], [], [], []
        for trainer in self.trainers:
            loss = trainer.loss_module
            keys = [*loss.in_keys, loss.tensor_keys.latent]
            with own_generators(trainer):
                batches.append(first_states(trainer.sample()).select(*keys, strict=False))
                if getattr(loss.world_model, "num_heads", 1) > 1:
                    orders.append(loss.world_model.draw_heads())
                shape = (loss.horizon, len(batches[-1]), loss.world_model.action_dim)
                noises.append(torch.randn(shape, device=self.device))
                if trainer.recorded is not None:
                    recorded.append(trainer.sample(trainer.recorded))
        sizes = sorted({len(batch) for batch in batches})
        if len(sizes) > 1:
            raise ValueError(f"tasks that are trained together need batches of one size, found {sizes}.")
        if len(recorded) not in (0, len(self.trainers)):
            raise ValueError("tasks that are trained together have recorded sequences all, or none of them.")
        heads = torch.stack(orders) if orders else None
        return torch.stack(batches), torch.stack(noises, 1), heads, torch.stack(recorded) if recorded else None

    def _failed(self, update: StackedPWMUpdate) -> dict[PWMTrainer, FloatingPointError]:
        self.unchecked += 1
        if self.unchecked < self.check_interval and not any(map(_anything_due, self.trainers)):
            return {}
        self.unchecked = 0
        return {self.trainers[task]: error for task, error in update.failures().items()}

    def _share(self, seconds: float) -> None:
        for trainer in self.trainers:
            if isinstance(trainer.stopwatch, SharedStopwatch):
                trainer.stopwatch.add(seconds / len(self.trainers))

    def _follow(self, metrics: TensorDictBase, failed: Iterable[PWMTrainer]) -> None:
        if any(trainer.due(trainer.log_interval) for trainer in self.trainers):
            metrics = metrics.cpu()
        updated = [(trainer, own) for trainer, own in zip(self.trainers, metrics.unbind(0)) if trainer not in failed]
        self.bar.update(len(self.trainers))
        for trainer, _ in updated:
            if trainer.average is not None:
                trainer.average.update()
            # The last evaluations in other processes begin before the first of them is waited for.
            if isinstance(trainer.evaluate, BackgroundEvaluation) and trainer.iteration == trainer.iterations:
                with own_generators(trainer):
                    trainer.evaluate.submit(trainer.iteration)
        for trainer, own in updated:
            with own_generators(trainer):
                trainer.after_update(own)


def _anything_due(trainer: PWMTrainer) -> bool:
    evaluates = trainer.evaluate is not None and trainer.due(trainer.eval_interval)
    saves = trainer.save_folder is not None and trainer.save_due
    return trainer.due(trainer.log_interval) or saves or evaluates
