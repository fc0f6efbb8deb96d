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
from torchrl import torchrl_logger
from torchrl.envs import EnvBase

from torchrl_pwm._utils.checkpoint import has_checkpoint, save_tensors
from torchrl_pwm._utils.door import read_json
from torchrl_pwm._utils.evaluations import NetworkEvaluation
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.envs.random_policy import RandomPolicy
from torchrl_pwm.envs.simulators import SwingUpController
from torchrl_pwm.evaluation import EvaluationResult, evaluate_policy, package_versions, plot_training
from torchrl_pwm.evaluation.best_policy import BestPolicy
from torchrl_pwm.evaluation.trust import TrustProbe, probe_trust, trust_line
from torchrl_pwm.modules import WorldModelPolicy
from torchrl_pwm.runs.folder import claim_folder, make_logger

Policy = Callable[[TensorDictBase], TensorDictBase]


class Evaluator:
    """Whole episodes in envs apart from the training's, one for each env.

    Args:
        config: of the run.
        device: where the envs run.
        data: recorded sequences beside which the trust probe shows the model's errors, see :func:`.probe_trust`.
    """

    def __init__(self, config: DictConfig, device: str, data: TensorDictBase | None = None) -> None:
        self.config, self.settings, self.device = config, config.evaluation, device
        self.data, self.envs = data, {}  # type: ignore[var-annotated]

    def __getstate__(self) -> dict[str, Any]:
        """Without the envs, which another process builds anew."""
        return {**vars(self), "envs": {}}

    def run(self, policy: Policy, episodes: int, seed: int) -> EvaluationResult:
        """Episodes from the start states of a seed."""
        return evaluate_policy(policy, self._env(episodes), episodes=episodes, seed=seed, task=self.config.task)

    def _env(self, episodes: int) -> EnvBase:
        if episodes not in self.envs:
            self.envs[episodes] = instantiate(self.config.env, num_envs=episodes, device=self.device)
        return self.envs[episodes]

    def probes(self, policy: Any) -> bool:
        """Whether :meth:`probe` is made of a policy: one in a world model whose observations are vectors."""
        wanted = self.config.get("trust_probe", False) and isinstance(policy, WorldModelPolicy)
        return wanted and len(policy.world_model.observation_shape) == 1

    def probe(self, policy: WorldModelPolicy, critics: nn.Module | None, episodes: int, seed: int) -> TrustProbe:
        """The episodes of :meth:`run`, and what the policy's model and critics promise of them."""
        config = self.config
        model: Any = policy.world_model
        return probe_trust(
            policy,
            model,
            self._env(episodes),
            critics,
            episodes=episodes,
            seed=seed,
            gamma=config.gamma if "gamma" in config else config.extraction.gamma,
            reward_space=config.loss.reward_space,
            reward_scale=config.loss.get("reward_scale", 1.0),
            data=self.data,
        )

    def during_training(self, policy: Any, critics: nn.Module | None = None) -> dict[str, float]:
        """The mean return, on seeds of its own, so that nothing is chosen on those of the final evaluation; and what
        the trust probe finds in the same episodes.
        """
        config, seed = self.config, self.settings.seed + 1
        episodes = config.eval_episodes if "eval_episodes" in config else config.extraction.eval_episodes
        if not self.probes(policy):
            return {"real_return": self.run(policy, episodes, seed).return_mean}
        probe = self.probe(policy, critics, episodes, seed)
        return {"real_return": probe.result.return_mean, **probe.metrics()}

    def outcome(self, policy: Any) -> dict[str, Any]:
        """Mean, spread and each of the returns of the final evaluation."""
        return _record(self.run(policy, self.settings.episodes, self.settings.seed))

    def probed_outcome(self, policy: Any, critics: nn.Module | None) -> dict[str, Any]:
        """The same, with what the trust probe says under ``"trust"``."""
        if not self.probes(policy):
            return self.outcome(policy)
        probe = self.probe(policy, critics, self.settings.episodes, self.settings.seed)
        return {**_record(probe.result), "trust": probe.record()}

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


def _record(result: EvaluationResult) -> dict[str, Any]:
    spread = float(result.returns.std())
    return {"return_mean": result.return_mean, "return_std": spread, "returns": result.returns.tolist()}


class TrustAlarm:
    """Logs the trust probe's line where it begins, and where it ceases, to show a sign of exploitation."""

    def __init__(self) -> None:
        self.sounds = False

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Reads the metrics of an evaluation along the way."""
        exploited = bool(metrics.get("exploited", 0.0))
        if exploited != self.sounds:
            figures = metrics.get("predicted_return"), metrics["real_return"], metrics.get("value_gap")
            torchrl_logger.info(f"the policy: {trust_line(exploited, *figures)}")
        self.sounds = exploited


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
        critics: of the policy, for the trust probe.
    """

    def __init__(
        self,
        config: DictConfig,
        folder: Path,
        evaluator: Evaluator,
        policy: Any,
        networks: nn.Module,
        critics: nn.Module | None = None,
    ) -> None:
        # Runs of SHAC had none at first, and their last policy counted.
        self.select = config.get("select", "last")
        self.config, self.folder, self.evaluator, self.policy = config, folder, evaluator, policy
        self.first_policy = "untrained policy"
        # Before a resume, so that an interrupted run has the same one.
        self.untrained = evaluator.outcome(policy)
        self.best, self.critics, self._alarm = BestPolicy(networks), critics, TrustAlarm()
        #: Along the way; the training goes on inside ``with`` it.
        self.evaluation = NetworkEvaluation(
            networks,
            partial(evaluator.during_training, policy, critics),
            joined=self._offer,
            elsewhere=bool(config.get("evaluator")),
            beside=critics if evaluator.probes(policy) else None,
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
            critics = iter([self.critics])  # of the last policy, which is evaluated first
            both = self.best.choose(
                self.select,
                lambda: {
                    "policy": self.evaluator.probed_outcome(self.policy, next(critics, None)),
                    **{name: self.evaluator.outcome(policy) for name, policy in policies.items()},
                },
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
        self._alarm(metrics)
        return metrics


def format_outcomes(summary: Path) -> str:
    """The returns of a summary as a table."""
    content: dict[str, Any] = read_json(
        summary, what="summary", keys=["outcomes", "task", "iterations", "steps", "seconds"]
    )
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
    trust = content["outcomes"]["policy"].get("trust")
    return "\n".join([head, *rows, *([] if trust is None else [f"trust probe: {trust['line']}"]), tail])
