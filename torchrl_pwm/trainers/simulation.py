"""SHAC in one simulator: training, evaluation beside baselines, and what a reader wants to see."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.objectives import ValueEstimators
from torchrl.record.loggers import get_logger

from torchrl_pwm.evaluation import EvaluationResult, evaluate_policy, package_versions, plot_training
from torchrl_pwm.objectives import SHACLoss
from torchrl_pwm.trainers.checkpoint import replace_file
from torchrl_pwm.trainers.extraction import Stopwatch
from torchrl_pwm.trainers.folders import claim_folder
from torchrl_pwm.trainers.models import choose_device
from torchrl_pwm.trainers.shac import SHACTrainer

_PANELS = {"return of an episode": ("real_return",), "reward of a step": ("reward_mean",)}


def run_simulation(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    The folder then holds the configuration, the metrics, the checkpoint, ``policy.pt`` (the state dict of the loss's
    ``policy``), ``training.png`` and the summary: returns of whole episodes of the policy, of the untrained
    one, of random actions and of none (zeros), all from the same start states.

    Raises:
        ImportError, ValueError: if the simulator is not installed, or an option is unknown.
        FloatingPointError: if a number is not finite, see :class:`SHACOptimizationStepper`.
    """
    summary = folder / "summary.json"
    if summary.exists():
        return summary
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    env: EnvBase = instantiate(config.env, requires_grad=True, seed=config.seed, device=device)
    judge = _Judge(config, device)
    loss = make_shac_loss(config, env).to(device)
    claim_folder(config, folder)
    # Before a resume, so that an interrupted run has the same one.
    untrained = judge.outcome(loss.policy)
    trainer = SHACTrainer(
        loss,
        env,
        iterations=config.iterations,
        optimization_stepper=instantiate(config.stepper, loss, iterations=config.iterations),
        logger=get_logger(config.logger, str(folder.parent), folder.name),
        log_interval=config.log_interval,
        evaluate=lambda: judge.during_training(loss.policy),
        eval_interval=config.eval_interval,
        save_folder=folder / "checkpoint",
        save_interval=config.save_interval,
        progress_bar=config.progress,
    )
    stopwatch = Stopwatch()
    trainer.register_module("stopwatch", stopwatch)
    trainer.resume(required=False)
    trainer.train()
    seconds = stopwatch.seconds
    _save_tensors(loss.policy.state_dict(), folder / "policy.pt")
    outcomes = {
        "policy": judge.outcome(loss.policy),
        "untrained policy": untrained,
        "random actions": judge.outcome(judge.random_actions()),
        "no action": judge.outcome(judge.no_action),
    }
    if config.logger == "csv":
        references = {name: outcomes[name]["return_mean"] for name in ("random actions", "no action")}
        plot_training(
            folder, folder / "training.png", panels=_PANELS, references=references, xlabel="window", title=config.task
        )
    steps = config.iterations * config.loss.horizon * env.batch_size.numel()
    content = {
        "task": config.task,
        "env": OmegaConf.to_container(config.env, resolve=True),
        "seed": config.seed,
        "evaluation_seed": config.evaluation.seed,
        "windows": config.iterations,
        "steps": steps,
        "seconds": round(seconds, 1),
        "skipped": trainer.optimization_stepper.skipped,
        "outcomes": outcomes,
        "versions": package_versions(),
        "made": datetime.date.today().isoformat(),
    }
    replace_file(summary, json.dumps(content, indent=2).encode())
    return summary


def make_shac_loss(config: DictConfig, env: EnvBase) -> SHACLoss:
    """New networks of the env's sizes, and the objective, as configured."""
    observation, action = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    normalizer = instantiate(config.normalizer, observation_dim=observation) if config.normalize_observations else None
    key = "observation" if normalizer is None else normalizer.out_keys[0]
    actor = instantiate(config.actor, latent_dim=observation, action_dim=action, in_key=key)
    value = instantiate(config.value, latent_dim=observation, in_key=key)
    loss: SHACLoss = instantiate(config.loss, actor, value, normalizer=normalizer)
    return loss.make_value_estimator(ValueEstimators.TDLambda, gamma=config.gamma, lmbda=config.lmbda)


def format_outcomes(summary: Path) -> str:
    """The returns of a summary as a table."""
    content: dict[str, Any] = json.loads(summary.read_text())
    rows = [
        f"{name:20}{found['return_mean']:12.1f} +- {found['return_std']:.1f}"
        for name, found in content["outcomes"].items()
    ]
    episodes = len(content["outcomes"]["policy"]["returns"])
    head = f"{content['task']}: return of {episodes} episodes, mean +- standard deviation"
    pace = content["seconds"] / content["windows"]
    tail = f"{content['windows']} windows, {content['steps']} steps, {content['seconds']:.0f} s ({pace:.2f} s a window)"
    return "\n".join([head, *rows, tail])


class _Judge:
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


def _save_tensors(state: dict[str, Tensor], path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace_file(path, buffer.getvalue())
