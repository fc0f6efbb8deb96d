"""How good a policy of one env is: whole episodes beside random actions and none, and what is written of them."""

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
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_pwm.envs.simulators import SwingUpController
from torchrl_pwm.evaluation import EvaluationResult, evaluate_policy, package_versions, plot_training
from torchrl_pwm.trainers.checkpoint import replace_file


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
