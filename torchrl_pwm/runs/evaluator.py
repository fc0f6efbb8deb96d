"""Evaluation of a run's policy along the way and at the end, and the summary of a run."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase

from torchrl_pwm._utils.checkpoint import has_checkpoint, save_tensors
from torchrl_pwm._utils.evaluations import NetworkEvaluation
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.envs.random_policy import RandomPolicy
from torchrl_pwm.envs.simulators import SwingUpController
from torchrl_pwm.evaluation import EvaluationResult, evaluate_policy, package_versions, plot_training
from torchrl_pwm.evaluation.best_policy import BestPolicy
from torchrl_pwm.runs.folder import claim_folder, make_logger

Policy = Callable[[TensorDictBase], TensorDictBase]


class Evaluator:
    """Whole episodes in envs apart from the training's, one for each env.

    Args:
        config: of the run.
        device: where the envs run.
    """

    def __init__(self, config: DictConfig, device: str) -> None:
        self.config, self.settings, self.device = config, config.evaluation, device
        self.envs: dict[int, EnvBase] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the envs, which another process builds anew."""
        return {**vars(self), "envs": {}}

    def run(self, policy: Policy, episodes: int, seed: int) -> EvaluationResult:
        """Episodes from the start states of a seed."""
        env = self.envs.get(episodes)
        if env is None:
            env = self.envs[episodes] = instantiate(self.config.env, num_envs=episodes, device=self.device)
        return evaluate_policy(policy, env, episodes=episodes, seed=seed, task=self.config.task)

    def during_training(self, policy: Any) -> dict[str, float]:
        """The mean return, on seeds of its own, so that nothing is chosen on those of the final evaluation."""
        return {"real_return": self.run(policy, self.config.eval_episodes, self.settings.seed + 1).return_mean}

    def outcome(self, policy: Any) -> dict[str, Any]:
        """Mean, spread and each of the returns of the final evaluation."""
        result = self.run(policy, self.settings.episodes, self.settings.seed)
        spread = float(result.returns.std())
        return {"return_mean": result.return_mean, "return_std": spread, "returns": result.returns.tolist()}

    def outcomes(self, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The final evaluation: what was evaluated, and what it is to be compared with, from the same start states."""
        spec = self.envs[self.settings.episodes].action_spec
        uniform = RandomPolicy(spec.shape[-1], self.config.seed, dtype=spec.dtype)
        outcomes = {
            **known,
            "random actions": self.outcome(uniform),
            "no action": self.outcome(lambda td: td.set("action", spec.zero())),
        }
        if self.config.task in SwingUpController.tasks:
            outcomes["hand-written controller"] = self.outcome(SwingUpController(self.config.task))
        return outcomes


class EvaluatedRun:
    """A run in its folder, whose policy is evaluated along the way.

    With ``config.select == "best"`` the networks that did best in an evaluation during training count, on start states
    that the final evaluation does not see, else the last ones; the summary has both. The untrained policy is evaluated
    first.

    Args:
        config: of the run.
        folder: where it lives.
        evaluator: evaluates.
        policy: what is evaluated.
        networks: what is kept of the best policy.
    """

    def __init__(
        self, config: DictConfig, folder: Path, evaluator: Evaluator, policy: Any, networks: nn.Module
    ) -> None:
        # Runs of SHAC had none at first, and their last policy counted.
        self.select = config.get("select", "last")
        self.config, self.folder, self.evaluator, self.policy = config, folder, evaluator, policy
        self.first_policy = "untrained policy"
        # Before a resume, so that an interrupted run has the same one.
        self.untrained = evaluator.outcome(policy)
        self.best = BestPolicy(networks)
        #: Along the way; the training goes on inside ``with`` it.
        self.evaluation = NetworkEvaluation(
            networks,
            partial(evaluator.during_training, policy),
            joined=self._offer,
            elsewhere=bool(config.get("evaluator")),
        )
        self.stopwatch = Stopwatch()
        self.resumed = has_checkpoint(folder / "checkpoint")

    @property
    def random_steps(self) -> int:
        """Random steps that are still to be collected: a resumed run has made them."""
        return 0 if self.resumed else self.config.collector.random_steps

    def options(self) -> dict[str, Any]:
        """What the configuration and the folder tell a :class:`~torchrl_pwm.trainers.Trainer`."""
        config = self.config
        return {
            "iterations": config.iterations,
            "logger": make_logger(config, self.folder),
            "log_interval": config.log_interval,
            "evaluate": self.evaluation,
            "eval_interval": config.eval_interval,
            "stopwatch": self.stopwatch,
            "save_folder": self.folder / "checkpoint",
            "save_interval": config.save_interval,
            "progress_bar": config.progress,
        }

    def online_options(self) -> dict[str, Any]:
        """The same for an :class:`~torchrl_pwm.trainers.OnlineTrainer`."""
        config = self.config
        return {
            **self.options(),
            "warmup_updates": config.warmup_updates,
            "normalize_observations": config.normalize_observations,
        }

    def resume(self, trainer: Any) -> None:
        """Claims the folder, and goes on from its checkpoint, if there is one."""
        claim_folder(self.config, self.folder)
        trainer.components["best_policy"] = self.best
        trainer.resume(required=False)

    def finish(
        self,
        files: Mapping[str, nn.Module],
        *,
        steps: int,
        panels: Mapping[str, Sequence[str]],
        xlabel: str = "iteration",
        policies: Mapping[str, Any] = MappingProxyType({}),
        outcomes: Mapping[str, Any] = MappingProxyType({}),
        **further: Any,
    ) -> Path:
        """Chooses among the networks, saves them, and returns the path of ``summary.json``, which it writes.

        A CSV log is drawn in ``training.png``.

        Args:
            files: of the folder, with the modules whose state dicts they hold.

        Keyword Args:
            steps: steps of the env, all envs together.
            panels, xlabel: of the picture, see :func:`~torchrl_pwm.evaluation.plot_training`.
            policies: further ones of the same networks, by name.
            outcomes: what the policy is compared with beside the usual.
            further: entries of the summary.
        """
        config, folder, seconds = self.config, self.folder, self.stopwatch.seconds
        # Where nothing was trained, it is the policy itself that was evaluated first.
        known, both = {"policy": self.untrained}, {}
        if steps:
            policies = {"policy": self.policy, **policies}
            both = self.best.choose(
                self.select, lambda: {name: self.evaluator.outcome(policy) for name, policy in policies.items()}
            )
            known = {**(both[self.select] or {}), self.first_policy: self.untrained}
        for name, module in files.items():
            save_tensors(folder / name, module.state_dict())
        results = {**self.evaluator.outcomes(known), **outcomes}
        results |= {f"{which} {name}": found for which in both for name, found in (both[which] or {}).items()}
        if config.logger == "csv" and steps:
            drawn = ("random actions", "no action", "hand-written controller")
            references = {name: results[name]["return_mean"] for name in drawn if name in results}
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
            "select": self.select,
            **further,
            "outcomes": results,
            "versions": package_versions(),
            "made": datetime.date.today().isoformat(),
        }
        replace_file(folder / "summary.json", json.dumps(content, indent=2).encode())
        return folder / "summary.json"

    def _offer(self, snapshot: Mapping[str, Any], metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        self.best.offer(metrics["real_return"], metrics["real_return"], snapshot["weights"])
        return metrics


def format_outcomes(summary: Path) -> str:
    """The returns of a summary as a table."""
    content: dict[str, Any] = json.loads(summary.read_text())
    rows = [
        f"{name:24}{outcome['return_mean']:12.1f} +- {outcome['return_std']:.1f}"
        for name, outcome in content["outcomes"].items()
    ]
    episodes = len(content["outcomes"]["policy"]["returns"])
    head = f"{content['task']}: return of {episodes} episodes, mean +- standard deviation"
    if "select" in content and "last policy" in content["outcomes"]:
        head += f"; policy: the {content['select']} one, select={content['select']}"
    pace = content["seconds"] / max(content["iterations"], 1)
    tail = (
        f"{content['iterations']} iterations, {content['steps']} steps, {content['seconds']:.0f} s ({pace:.2f} s each)"
    )
    return "\n".join([head, *rows, tail])
