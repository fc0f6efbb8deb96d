"""Evaluation of a run's policy along the way and at the end, and what is written of it."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.record.loggers import get_logger

from torchrl_pwm._utils.checkpoint import has_checkpoint
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.envs.simulators import SwingUpController
from torchrl_pwm.evaluation import EvaluationResult, evaluate_policy, package_versions, plot_training
from torchrl_pwm.runs.folder import claim_folder
from torchrl_pwm.trainers.collected import OnlineTrainer
from torchrl_pwm.trainers.hooks import BestPolicy


class Judge:
    """Episodes in envs apart from the training's: one row, one episode."""

    def __init__(self, config: DictConfig, device: str) -> None:
        self.config, self.settings, self.device = config, config.evaluation, device
        self.envs: dict[int, EnvBase] = {}

    def run(self, policy: Callable[[TensorDictBase], TensorDictBase], episodes: int, seed: int) -> EvaluationResult:
        env = self.envs.get(episodes)
        if env is None:
            env = self.envs[episodes] = instantiate(self.config.env, num_envs=episodes, device=self.device)
        return evaluate_policy(policy, env, episodes=episodes, seed=seed, task=self.config.task)

    def during_training(self, policy: Any) -> dict[str, float]:
        # On seeds of its own, so that nothing is chosen on those of the final evaluation.
        return {"real_return": self.run(policy, self.config.eval_episodes, self.settings.seed + 1).return_mean}

    def outcome(self, policy: Any) -> dict[str, Any]:
        found = self.run(policy, self.settings.episodes, self.settings.seed)
        spread = float(found.returns.std())
        return {"return_mean": found.return_mean, "return_std": spread, "returns": found.returns.tolist()}

    def outcomes(self, policy: Any, untrained: dict[str, Any]) -> dict[str, Any]:
        """The final evaluation: the policy, and what it is to be compared with, from the same start states."""
        found = {
            "policy": self.outcome(policy),
            "untrained policy": untrained,
            "random actions": self.outcome(self.random_actions()),
            "no action": self.outcome(self.no_action),
        }
        if self.config.task in SwingUpController.tasks:
            found["hand-written controller"] = self.outcome(SwingUpController(self.config.task))
        return found

    def random_actions(self) -> Callable[[TensorDictBase], TensorDictBase]:
        """Uniform actions in [-1, 1], from a generator of their own."""
        generator = torch.Generator().manual_seed(self.config.seed)

        def act(state: TensorDictBase) -> TensorDictBase:
            spec = self.envs[self.settings.episodes].action_spec
            draws = torch.rand(spec.shape, generator=generator, dtype=spec.dtype)
            return state.set("action", (2 * draws - 1).to(self.device))

        return act

    def no_action(self, state: TensorDictBase) -> TensorDictBase:
        return state.set("action", self.envs[self.settings.episodes].action_spec.zero())


def write_summary(
    config: DictConfig,
    folder: Path,
    outcomes: dict[str, Any],
    *,
    panels: Mapping[str, Sequence[str]],
    xlabel: str,
    steps: int,
    seconds: float,
    **further: Any,
) -> Path:
    """Writes ``summary.json`` and, from a CSV log, ``training.png``; returns the path of the summary.

    Args:
        config: of the run.
        folder: of the run.
        outcomes: of :meth:`Judge.outcomes`.

    Keyword Args:
        panels, xlabel: of the picture, see :func:`~torchrl_pwm.evaluation.plot_training`.
        steps: steps of the env, all rows together.
        seconds: that training took.
        further: entries of the summary.
    """
    if config.logger == "csv":
        drawn = ("random actions", "no action", "hand-written controller")
        references = {name: outcomes[name]["return_mean"] for name in drawn if name in outcomes}
        plot_training(
            folder, folder / "training.png", panels=panels, references=references, xlabel=xlabel, title=config.task
        )
    content = {
        "task": config.task,
        "env": OmegaConf.to_container(config.env, resolve=True),
        "seed": config.seed,
        "evaluation_seed": config.evaluation.seed,
        "iterations": config.iterations,
        "steps": steps,
        "seconds": round(seconds, 1),
        **further,
        "outcomes": outcomes,
        "versions": package_versions(),
        "made": datetime.date.today().isoformat(),
    }
    summary = folder / "summary.json"
    replace_file(summary, json.dumps(content, indent=2).encode())
    return summary


def format_outcomes(summary: Path) -> str:
    """The returns of a summary as a table."""
    content: dict[str, Any] = json.loads(summary.read_text())
    rows = [
        f"{name:24}{found['return_mean']:12.1f} +- {found['return_std']:.1f}"
        for name, found in content["outcomes"].items()
    ]
    episodes = len(content["outcomes"]["policy"]["returns"])
    head = f"{content['task']}: return of {episodes} episodes, mean +- standard deviation"
    pace = content["seconds"] / content["iterations"]
    tail = (
        f"{content['iterations']} iterations, {content['steps']} steps, {content['seconds']:.0f} s ({pace:.2f} s each)"
    )
    return "\n".join([head, *rows, tail])


def save_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Writes a state dict to a file of tensors only."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace_file(path, buffer.getvalue())


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
