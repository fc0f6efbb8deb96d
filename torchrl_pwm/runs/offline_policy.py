"""Policy of a task of recorded data: its training from the behaviour of the data on, and what it earns."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torchrl import torchrl_logger

from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.evaluations import NetworkEvaluation
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.envs.random_policy import RandomPolicy
from torchrl_pwm.evaluation.best_policy import BestPolicy
from torchrl_pwm.modules import PWMWorldModel, WorldModelPolicy
from torchrl_pwm.objectives import PWMLoss
from torchrl_pwm.runs.evaluator import Evaluator, TrustAlarm
from torchrl_pwm.runs.folder import make_logger
from torchrl_pwm.runs.policies import load_policy, make_loss, policy_file
from torchrl_pwm.runs.recordings import Recordings
from torchrl_pwm.runs.starts import FRESH, Before, make_recorded, make_starts
from torchrl_pwm.trainers.averaging import PolicyAverage
from torchrl_pwm.trainers.pwm import PWMTrainer, warm_start


def extract(
    config: DictConfig,
    folder: Path,
    recordings: Recordings,
    task: str,
    model: PWMWorldModel,
    evaluator: Evaluator | None,
    device: str,
    before: Before = FRESH,
) -> tuple[PWMLoss, dict[str, Any]]:
    """A policy of one task, whose file it writes; its loss, and what it earned in the env, if there is one.

    It begins with the behaviour of the data, or goes on from the policy and critics ``before`` it.
    """
    settings = config.extraction
    torch.manual_seed(1_000_003 * config.seed + recordings.store.task_set[task].index)
    loss = make_loss(config, model, model.action_dim).to(device)
    places: dict[str, Any] = {"data": Path(recordings.store.root), "before": before, "device": device}
    replay = make_starts(config, task, config.seed, model, episodes=recordings.kept, **places)
    stepper = instantiate(config.stepper, loss, iterations=settings.iterations)
    average, best = PolicyAverage(loss.actor_network, settings.average), BestPolicy(loss.actor_network)
    policy = WorldModelPolicy(model, loss.actor_network)

    alarm, critics = TrustAlarm(), loss.value_network

    def offer(snapshot: Mapping[str, Any], metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        best.offer(metrics["real_return"], metrics["real_return"], snapshot["weights"])
        alarm(metrics)
        return metrics

    evaluation = None
    if evaluator is not None:
        evaluation = NetworkEvaluation(
            loss.actor_network,
            partial(evaluator.during_training, policy, critics),
            joined=offer,
            applied=average.applied,
            elsewhere=bool(config.get("evaluator")),
            beside=critics if evaluator.probes(policy) else None,
        )
    trainer = PWMTrainer(
        loss,
        replay,
        iterations=settings.iterations,
        optimization_stepper=stepper,
        average=average,
        recorded=make_recorded(task, config.seed, loss.horizon, before, device),
        device=device,
        logger=make_logger(config, folder),
        log_interval=settings.log_interval,
        evaluate=evaluation,
        eval_interval=settings.eval_interval,
        stopwatch=Stopwatch(),
        save_folder=folder / "checkpoint",
        save_interval=settings.save_interval,
        progress_bar=config.progress,
    )
    trainer.components["best_policy"] = best
    with evaluation or contextlib.nullcontext():
        trainer.resume(required=False)
        if trainer.iteration == 0:
            if before.folder is None:
                torchrl_logger.info(f"{task}: the policy begins with the behaviour of the data")
                warm_start(loss, stepper, replay, **settings.warm_start, device=device)
            else:
                load_policy(loss, policy_file(before.folder, task, config.seed))
            average.restart()
            if before.finished:
                best.offer(0.0, 0.0)
            elif before.folder is not None:
                trainer.log_evaluation(now=True)
        if not before.finished:
            trainer.train()
    average.restore()
    outcomes: dict[str, Any] = {}
    if evaluator is not None:
        of_last = iter([critics])  # of the last policy, which is evaluated first
        both = best.choose(settings.select, lambda: evaluator.probed_outcome(policy, next(of_last, None)))
        outcomes = {"policy": both[settings.select], **{f"{which} policy": found for which, found in both.items()}}
        outcomes["random actions"] = evaluator.outcome(RandomPolicy(model.action_dim, config.seed))
    save_tensors(folder / "policy.pt", loss.actor_network.state_dict())
    return loss, outcomes
