"""Implicit Q-learning from the recorded episodes of one task, with TorchRL's IQLLoss.

    python -m benchmarks.learning.methods.iql task=cup-catch data.root=runs/mini/data
    python -m benchmarks.learning.methods.iql resume=runs/2026-11-21_cup-catch

The options are in conf/iql.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import IQLLoss, SoftUpdate, ValueEstimators
from torchrl.trainers import OptimizationStepper

from benchmarks.learning.recorded import episode_returns
from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.devices import choose_device, place_buffers, readable, torch_threads
from torchrl_pwm._utils.evaluations import NetworkEvaluation
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.data import EpisodeStore, TDMPC2ExperienceReplay
from torchrl_pwm.envs import TaskSpec, get_task_set
from torchrl_pwm.evaluation import package_versions
from torchrl_pwm.evaluation.best_policy import BestPolicy
from torchrl_pwm.evaluation.task_episodes import TaskEpisodes
from torchrl_pwm.runs.cli import compose_config, user_errors
from torchrl_pwm.runs.data import check_simulators
from torchrl_pwm.runs.folder import claim_folder, finished, make_logger, open_run, running
from torchrl_pwm.trainers.imitation import Standardize
from torchrl_pwm.trainers.trainer import ReplayTrainer

_CONF = Path(__file__).with_name("conf")
_KEY = "normalized_observation"


class IQLStepper(OptimizationStepper):
    """One iteration: a step of Adam on all three losses, and the target Q functions follow.

    Args:
        loss: the objective.
        iterations: over which the actor's learning rate falls to zero.
        lr: of all networks.
        target_rate: how far the target Q functions move.
    """

    def __init__(self, loss: IQLLoss, *, iterations: int, lr: float, target_rate: float) -> None:
        self.loss, self.target = loss, SoftUpdate(loss, tau=target_rate)
        actor = [value for value in loss.actor_network_params.values(True, True) if value.requires_grad]
        others = [
            value
            for params in (loss.qvalue_network_params, loss.value_network_params)
            for value in params.values(True, True)
            if value.requires_grad
        ]
        self.optimizer = torch.optim.Adam([{"params": actor}, {"params": others}], lr)
        falling = [lambda step: 0.5 * (1 + math.cos(math.pi * min(step / iterations, 1.0))), lambda step: 1.0]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, falling)

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        """An update from transitions [B].

        Raises:
            FloatingPointError: if a loss is not finite, before the step.
        """
        losses = self.loss(sub_batch)
        total = losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_value"]
        if readable(total) and not total.isfinite():
            raise FloatingPointError(f"the IQL loss is {total.item()}; try a smaller lr")
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.schedule.step()
        self.target.step()
        return losses.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.schedule.load_state_dict(state_dict["schedule"])


class IQLTrainer(ReplayTrainer):
    """Trains IQL on recorded transitions, whose observations are standardised and whose rewards are scaled.

    Args:
        loss: the objective.
        replay: gives sequences [B, 1] of a task.
        stepper: of the loss.
        spec: of the task, whose own entries of observation and action are read.
        standardize: of its observations.
        reward_scale: of its rewards.
    """

    progress_keys = ("loss_actor", "loss_qvalue")

    def __init__(
        self,
        loss: IQLLoss,
        replay: TDMPC2ExperienceReplay,
        stepper: IQLStepper,
        *,
        spec: TaskSpec,
        standardize: Standardize,
        reward_scale: float,
        **options: Any,
    ) -> None:
        self.spec, self.standardize, self.reward_scale = spec, standardize, reward_scale
        super().__init__(loss, replay, stepper, **options)

    def train(self) -> None:
        """Runs the updates that are left."""
        for _ in self.remaining():
            metrics = self.optimization_stepper.step(self, self.sample())
            self.log(metrics)
            self.log_evaluation()
            self.save()

    def sample(self) -> TensorDictBase:
        """Transitions [B] as the networks read them."""
        batch, size = super().sample().flatten(), self.spec.observation_dim
        following = batch["next"].select("done", "terminated")
        following[_KEY] = self.standardize(batch["next", "observation"][:, :size])
        following["reward"] = batch["next", "reward"] * self.reward_scale
        own = {_KEY: self.standardize(batch["observation"][:, :size])}
        own["action"] = batch["action"][:, : self.spec.action_dim]
        return TensorDict({**own, "next": following}, batch.batch_size, batch.device)


def make_iql(config: DictConfig, spec: TaskSpec) -> tuple[IQLLoss, ProbabilisticActor]:
    """Networks of the task's sizes and TorchRL's loss. The actor is a Gaussian whose spread is of no state."""
    sizes = {"num_cells": list(config.units), "activation_class": nn.ReLU}
    observation, action = spec.observation_dim, spec.action_dim
    scale = AddStateIndependentNormalScale(action, scale_mapping="exp", scale_lb=math.exp(-10.0))
    mean = nn.Sequential(MLP(observation, action, **sizes), nn.Tanh())
    actor = ProbabilisticActor(
        TensorDictModule(nn.Sequential(mean, scale), [_KEY], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=Bounded(-1.0, 1.0, (action,)),
        distribution_class=IndependentNormal,
    )
    loss = IQLLoss(
        actor,
        ValueOperator(MLP(observation + action, 1, **sizes), in_keys=[_KEY, "action"]),
        ValueOperator(MLP(observation, 1, **sizes), in_keys=[_KEY]),
        loss_function="l2",
        temperature=config.temperature,
        expectile=config.expectile,
    )
    loss.make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
    place_buffers(loss)
    return loss, actor


def run_iql(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    The summary has returns and successes of the last and of the best policy, of which ``select`` counts; ``policy.pt``
    is the state dict of the statistics and the actor.

    Raises:
        FileNotFoundError, ValueError, ImportError: if data, task or simulator are missing.
        FloatingPointError: if a loss is not finite.
    """
    if summary := finished(config, folder):
        return summary
    if config.data.root is None:
        raise ValueError("IQL learns from recorded episodes: name the folder of an EpisodeStore with data.root=")
    table = get_task_set(config.task_set)
    spec, store = table[config.task], EpisodeStore(config.data.root)
    check_simulators([spec.name], table)
    returns = episode_returns(store, spec.name)
    claim_folder(config, folder)
    with torch_threads(config.threads):
        return _run(config, folder, spec, store, config.return_range / max(float(np.ptp(returns)), 1e-6))


def _run(config: DictConfig, folder: Path, spec: TaskSpec, store: EpisodeStore, reward_scale: float) -> Path:
    torch.manual_seed(1_000_003 * config.seed + spec.index)
    device, stopwatch = choose_device(config.device), Stopwatch()
    (rows,) = store.select([spec.name])
    moments = (torch.tensor(found[: spec.observation_dim]) for found in (rows.observation_mean, rows.observation_std))
    standardize = Standardize(*moments).to(device)
    loss, actor = make_iql(config, spec)
    loss.to(device)
    policy = TensorDictSequential(TensorDictModule(standardize, ["observation"], [_KEY]), actor)
    best = BestPolicy(policy)

    def offer(snapshot: Mapping[str, Any], metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        best.offer(metrics["real_score"], metrics["real_return"], snapshot["weights"])
        return metrics

    with TaskEpisodes(spec.name, device=device) as played:
        evaluate = functools.partial(_metrics, played, policy, config.eval_episodes, config.evaluation.seed + 1)
        evaluation = NetworkEvaluation(policy, evaluate, joined=offer, elsewhere=False)
        trainer = IQLTrainer(
            loss,
            TDMPC2ExperienceReplay(
                store.root, config.batch_size, slice_len=1, tasks=[spec.name], seed=config.seed, check_finite=False
            ),
            IQLStepper(loss, iterations=config.iterations, lr=config.lr, target_rate=config.target_rate),
            spec=spec,
            standardize=standardize,
            reward_scale=reward_scale,
            iterations=config.iterations,
            device=device,
            logger=make_logger(config, folder),
            log_interval=config.log_interval,
            evaluate=evaluation,
            eval_interval=config.eval_interval,
            stopwatch=stopwatch,
            save_folder=folder / "checkpoint",
            save_interval=config.save_interval,
            progress_bar=config.progress,
        )
        trainer.components["best_policy"] = best
        trainer.resume(required=False)
        trainer.train()
        seconds, final = stopwatch.seconds, config.evaluation
        both = best.choose(config.select, lambda: played.evaluate(policy, final.episodes, final.seed).record())
    save_tensors(folder / "policy.pt", policy.state_dict())
    content = {
        **{"task": spec.name, "seed": config.seed, "iterations": config.iterations, "seconds": round(seconds, 1)},
        **{"select": config.select, **(both[config.select] or {}), **both, "evaluation_seed": final.seed},
        **{"versions": package_versions(), "made": datetime.date.today().isoformat()},
    }
    replace_file(folder / "summary.json", json.dumps({**content, "seed": config.seed}, indent=2).encode())
    return folder / "summary.json"


def _metrics(played: TaskEpisodes, policy: Any, episodes: int, seed: int) -> dict[str, float]:
    result = played.evaluate(policy, episodes, seed)
    return {"real_return": result.return_mean, "real_score": float(result.score or 0.0)}


def main() -> None:
    with user_errors():
        config, folder = open_run(compose_config("iql", sys.argv[1:], _CONF), sys.argv[1:])
        with running(folder, "python -m benchmarks.learning.methods.iql"):
            summary = run_iql(config, folder)
        print(summary)


if __name__ == "__main__":
    main()
