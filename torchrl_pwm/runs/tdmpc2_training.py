"""Training of TD-MPC2 on offline data of many tasks, and rounds in which it plays and trains on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torchrl import torchrl_logger
from torchrl.envs.transforms import InitTracker

from torchrl_pwm._utils.checkpoint import load_checkpoint, save_tensors
from torchrl_pwm._utils.devices import choose_device, reads_ahead
from torchrl_pwm._utils.evaluations import NetworkEvaluation
from torchrl_pwm._utils.stopwatch import Stopwatch
from torchrl_pwm.data import EpisodeStore, ReplayMixture, TDMPC2ExperienceReplay
from torchrl_pwm.data.store.statistics import observation_statistics
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.evaluation.best_policy import BestPolicy
from torchrl_pwm.modules import TDMPC2Model
from torchrl_pwm.runs.folder import make_logger
from torchrl_pwm.runs.own_episodes import mix, play, round_seed, with_rate
from torchrl_pwm.runs.world_model import make_world_model
from torchrl_pwm.trainers.tdmpc2 import TDMPC2Trainer

MODEL = "model.pt"
Scores = Callable[[DictConfig, TDMPC2Model, list[str]], Mapping[str, float]]
Replay = TDMPC2ExperienceReplay | ReplayMixture


def train_tdmpc2(config: DictConfig, folder: Path, store: EpisodeStore, tasks: list[str], scores: Scores) -> Path:
    """Trains a model, or goes on where that was interrupted, and returns the file of the one that counts.

    Args:
        config: of the run.
        folder: of the training.
        store: the data.
        tasks: those of it that are learnt.
        scores: evaluates along the way.
    """
    file, settings = folder / MODEL, config.training
    if file.exists():
        return file
    torch.manual_seed(config.seed)
    model, device = _new_model(config, store), choose_device(config.device)
    replay = TDMPC2ExperienceReplay(
        store.root,
        settings.batch_size,
        slice_len=settings.slice_len,
        tasks=tasks,
        seed=config.seed,
        **reads_ahead(device),
    )
    torchrl_logger.info(f"TD-MPC2: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tasks)} tasks")
    return _train(config, folder, model, replay, tasks, scores, settings.iterations, settings.eval_interval)


def play_rounds(config: DictConfig, folder: Path, store: EpisodeStore, tasks: list[str], scores: Scores) -> Path:
    """``rounds.count`` rounds after the training in ``folder/model``; returns the file of the model that counts.

    In each the last model plays, by planning or, with ``rounds.plan=false``, by its policy prior, with noise; then
    all of it trains on from there with ``rounds.share`` of every batch from own episodes. They mean what they do of
    PWM's policies, see :func:`~torchrl_pwm.runs.rounds.run_rounds`. The Adam moments are kept where the learning rate
    is, with neither ``rounds.lr`` nor ``stepper.final_lr``. Each round is evaluated ``rounds.evaluations`` times, first
    before its updates.
    """
    settings, last, own = config.rounds, folder / "model", []
    for number in range(settings.count):
        root, here = folder / "rounds" / str(number) / "data", folder / "rounds" / str(number + 1) / "model"
        own.append(root)
        if not (here / MODEL).exists():
            _play(config, root, _last_model(config, last, store), tasks, seed=round_seed(config.seed, number))
            _train_on(config, here, last, store, own, tasks, scores)
        last = here
    return last / MODEL


def _play(config: DictConfig, root: Path, model: TDMPC2Model, tasks: list[str], *, seed: int) -> None:
    """Episodes of a model; each task has a planner of its own, which keeps the plans of its env."""
    model = model.to(choose_device(config.device)).eval()
    planners = {task: instantiate(config.planner, model, plan=config.rounds.plan) for task in tasks}
    play(config, root, planners, seed=seed, transform=InitTracker())


def _train_on(
    config: DictConfig, here: Path, before: Path, store: EpisodeStore, own: list[Path], tasks: list[str], scores: Scores
) -> None:
    settings, training = config.rounds, config.training
    torch.manual_seed(config.seed + len(own))
    replay = mix(
        settings,
        Path(store.root),
        own,
        batch_size=training.batch_size,
        slice_len=training.slice_len,
        tasks=tasks,
        seed=config.seed + len(own),
    )
    # The first evaluation is before the updates, the last after them.
    interval = -(-settings.iterations // max(settings.evaluations - 1, 1))
    model, rated = _new_model(config, store), with_rate(config, "stepper")
    _train(rated, here, model, replay, tasks, scores, settings.iterations, interval, before=before)


def _new_model(config: DictConfig, store: EpisodeStore) -> TDMPC2Model:
    """A model with the sizes of the configured task set."""
    lengths = config.heads.episode_lengths or [task.episode_length for task in get_task_set(config.task_set)]
    model: TDMPC2Model = instantiate(config.heads, make_world_model(config), episode_lengths=lengths)
    if config.training.get("normalize_observations"):
        model.world_model.set_observation_statistics(*observation_statistics(store))
    return model


def _last_model(config: DictConfig, folder: Path, store: EpisodeStore) -> TDMPC2Model:
    """The model that a training ended with, whichever counts."""
    loss = instantiate(config.loss, _new_model(config, store))
    loss.load_state_dict(load_checkpoint(folder / "checkpoint")["loss_module"])
    return loss.model.requires_grad_(False)


def _train(
    config: DictConfig,
    folder: Path,
    model: TDMPC2Model,
    replay: Replay,
    tasks: list[str],
    scores: Scores,
    iterations: int,
    eval_interval: int,
    *,
    before: Path | None = None,
) -> Path:
    """A training in its folder, from a new model or from where the training in ``before`` ended."""
    settings, device = config.training, choose_device(config.device)
    loss = instantiate(config.loss, model.to(device))
    stepper = instantiate(config.stepper, loss, iterations=iterations)
    if before is not None:
        state = load_checkpoint(before / "checkpoint")
        loss.load_state_dict(state["loss_module"])
        if config.rounds.lr is None and config.stepper.final_lr is None:
            stepper.load_state_dict(state["optimization_stepper"])
    best = BestPolicy(model)

    def offer(snapshot: Mapping[str, Any], metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        best.offer(metrics["real_score"], metrics["real_score"], snapshot["weights"])
        return metrics

    evaluation = NetworkEvaluation(
        model, partial(scores, config, model, tasks), joined=offer, elsewhere=bool(config.get("evaluator"))
    )
    trainer = TDMPC2Trainer(
        loss,
        replay,
        iterations=iterations,
        optimization_stepper=stepper,
        device=device,
        logger=make_logger(config, folder),
        log_interval=settings.log_interval,
        evaluate=evaluation,
        eval_interval=eval_interval,
        stopwatch=Stopwatch(),
        save_folder=folder / "checkpoint",
        save_interval=settings.save_interval,
        progress_bar=config.progress,
    )
    trainer.components["best_policy"] = best
    with evaluation:
        trainer.resume(required=False)
        if before is not None and trainer.iteration == 0 and config.rounds.evaluations > 1:
            trainer.log_evaluation(now=True)
        trainer.train()
    model.cpu()
    select, normalized = settings.get("select", "last"), model.world_model.observation_std is not None
    both = best.choose(select, lambda: copy.deepcopy(model.to_checkpoint("new", statistics=normalized)))
    # The one that counts comes last: once it is there, the training is done.
    for which, saved in sorted(both.items(), key=lambda item: item[0] == select):
        if saved is not None:
            save_tensors(folder / (MODEL if which == select else f"{which}.pt"), saved)
    return folder / MODEL
