"""What every online run from the command line does around its training: judging, choosing, saving, summing up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn
from torchrl.record.loggers import get_logger

from torchrl_pwm.trainers.checkpoint import has_checkpoint
from torchrl_pwm.trainers.collected import OnlineTrainer
from torchrl_pwm.trainers.extraction import BestPolicy
from torchrl_pwm.trainers.folders import claim_folder
from torchrl_pwm.trainers.judging import Judge, save_tensors, write_summary
from torchrl_pwm.trainers.stopwatch import Stopwatch


class JudgedRun:
    """A run in its folder, whose policy is evaluated along the way.

    With ``config.select == "best"`` the networks that did best in an evaluation during training count, on start states
    that the final evaluation does not see, else the last ones.

    Args:
        config: of the run.
        folder: where it lives; it is claimed, and the untrained policy is judged.
        judge: evaluates.
        policy: what is evaluated.
        networks: what is kept of the best policy.
    """

    def __init__(self, config: DictConfig, folder: Path, judge: Judge, policy: Any, networks: nn.Module) -> None:
        claim_folder(config, folder)
        self.config, self.folder, self.judge, self.policy = config, folder, judge, policy
        self.untrained = judge.outcome(policy)
        self.best, self.stopwatch = BestPolicy(networks), Stopwatch()
        self.resumed = has_checkpoint(folder / "checkpoint")

    @property
    def random_steps(self) -> int:
        """Random steps that are still to be collected: a resumed run has made them."""
        return 0 if self.resumed else self.config.collector.random_steps

    def options(self) -> dict[str, Any]:
        """What the configuration and the folder tell an :class:`~torchrl_pwm.trainers.OnlineTrainer`."""
        config = self.config
        return {
            "iterations": config.iterations,
            "warmup_updates": config.warmup_updates,
            "normalize_observations": config.normalize_observations,
            "logger": get_logger(config.logger, str(self.folder.parent), self.folder.name),
            "log_interval": config.log_interval,
            "evaluate": self._evaluate,
            "eval_interval": config.eval_interval,
            "stopwatch": self.stopwatch,
            "save_folder": self.folder / "checkpoint",
            "save_interval": config.save_interval,
            "progress_bar": config.progress,
        }

    def resume(self, trainer: OnlineTrainer) -> None:
        """Goes on from the folder's checkpoint, if there is one."""
        trainer.register_module("best_policy", self.best)
        trainer.resume(required=False)

    def finish(
        self,
        trainer: OnlineTrainer,
        files: Mapping[str, nn.Module],
        *,
        panels: Mapping[str, Sequence[str]],
        outcomes: Callable[[], dict[str, Any]] = dict,
        **further: Any,
    ) -> Path:
        """Chooses among the networks, saves them, and returns the path of the summary that it writes.

        Args:
            trainer: at its end.
            files: of the folder, with the modules whose state dicts they hold.

        Keyword Args:
            panels: of the picture.
            outcomes: called with the chosen networks in place; what they are compared with beside the usual.
            further: entries of the summary.
        """
        seconds = self.stopwatch.seconds
        last = self.judge.outcome(self.policy)
        if self.config.select == "best":
            self.best.restore()
        for name, module in files.items():
            save_tensors(module.state_dict(), self.folder / name)
        found = {**self.judge.outcomes(self.policy, self.untrained), **outcomes(), "last policy": last}
        return write_summary(
            self.config,
            self.folder,
            found,
            panels=panels,
            xlabel="iteration",
            steps=trainer.env_steps,
            seconds=seconds,
            **further,
        )

    def _evaluate(self) -> dict[str, float]:
        found = self.judge.during_training(self.policy)
        self.best.offer(found["real_return"], found["real_return"])
        return found
