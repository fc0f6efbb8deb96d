"""Online PWM: one env's own steps, evaluation beside baselines, and the files of the run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torch import nn
from torchrl import torchrl_logger
from torchrl.collectors import BaseCollector, Collector, MultiSyncCollector
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase, InitTracker, TransformedEnv
from torchrl.objectives import ValueEstimators

from torchrl_pwm._utils.devices import choose_device
from torchrl_pwm._utils.door import read_json
from torchrl_pwm._utils.files import replace_file
from torchrl_pwm._utils.processes import end_with_parent
from torchrl_pwm._utils.seeds import seed_worker_process
from torchrl_pwm._utils.stopping import become_worker, is_stoppable, shield_tracker, signals_wait
from torchrl_pwm.data import extend_with_recorded, make_online_replay, read_memmap, store_transitions
from torchrl_pwm.data.store.manifest import MANIFEST_NAME
from torchrl_pwm.envs.multitask import innermost_env
from torchrl_pwm.evaluation.scores import find_task_spec
from torchrl_pwm.modules import PWMWorldModel, WorldModelPolicy
from torchrl_pwm.objectives import PWMLoss, PWMWorldModelLoss
from torchrl_pwm.runs.evaluator import EvaluatedRun, Evaluator
from torchrl_pwm.runs.folder import finished, make_logger
from torchrl_pwm.trainers.pwm import OnlinePWMOptimizationStepper, OnlinePWMTrainer, warm_start

#: What the clone of recorded behaviour earned.
_CLONED = "cloned.json"
#: Folder of what the world model learns of recorded steps first, in a run's; and its intervals, in updates.
PRETRAINING = "pretraining"
_PRETRAINING_LOG, _PRETRAINING_SAVE = 100, 1000
_PANELS = {
    "return of an episode": ("real_return", "predicted_return"),
    "reward of a step": ("collected_reward",),
    "error of the model's reward": ("reward_error",),
}


def run_online(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    With ``select=best`` the networks that did best in an evaluation during training count, on start states that the
    final evaluation does not see, else the last ones. The folder then holds the configuration, the metrics, the
    checkpoint, ``policy.pt`` and ``world_model.pt`` (state dicts of the :class:`~torchrl_pwm.WorldModelPolicy`'s actor
    and of the model), ``training.png`` and the summary: returns of whole episodes of the policy, of the last, the best
    and the untrained one, of the clone of recorded behaviour that it began with, if it did, of random actions, of none
    (zeros) and of the hand-written controller where there is one, all from the same start states. With
    ``config.checkpoint`` the run begins with what that holds, and ``config.stage`` says what is done with it.

    Raises:
        FileNotFoundError, DamagedFileError: if a checkpoint or recorded steps cannot be read.
        ImportError, ValueError: if a simulator is not installed, or an option is unknown.
        FloatingPointError: if a number is not finite.
    """
    if summary := finished(config, folder):
        return summary
    given = None
    if config.get("checkpoint") is not None:
        from torchrl_pwm.runs.agents import open_given

        given = open_given(config)
        config = given.config
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    evaluator = Evaluator(config, device)
    env = make_training_env(config, device)
    if given is not None:
        given.check(env)
    model, loss, model_loss = make_losses(config, env, device)
    if given is not None:
        given.put_into(model, loss)
    policy = WorldModelPolicy(model, loss.actor_network)
    run = EvaluatedRun(config, folder, evaluator, policy, policy, loss.value_network)
    if given is not None:
        run.first_policy = given.first_policy
        if config.stage == "evaluation":
            return given.evaluate(run, loss, model)
    if not run.resumed:
        check_recordings(config, env)
    replay = make_online_replay(**config.replay, seed=config.seed)
    stepper = make_stepper(config, loss, model_loss, replay)
    if given is not None:
        given.put_into_steppers(loss, stepper)
    trainer = OnlinePWMTrainer(
        loss,
        model_loss,
        make_collector(config, env, policy, device, random_steps=run.random_steps),
        replay,
        warmup_steps=config.collector.random_steps + config.collector.first_policy_steps,
        episode_seed=config.seed if config.collector.workers < 2 else None,
        optimization_stepper=stepper,
        **run.online_options(),
    )
    with run.evaluation, contextlib.closing(trainer):
        run.resume(trainer)
        if not run.resumed:
            _learn_from_recordings(config, folder, trainer, env.batch_size.numel(), device)
            if config.pretraining.warm_start.behavior_updates:
                replace_file(folder / _CLONED, json.dumps(evaluator.outcome(policy)).encode())
        trainer.train()
    cloned = folder / _CLONED
    return run.finish(
        {"policy.pt": loss.actor_network, "world_model.pt": model},
        steps=trainer.env_steps,
        panels=_PANELS,
        outcomes={"cloned behaviour": read_json(cloned, what="outcome", keys=["returns"])} if cloned.exists() else {},
        skipped=stepper.policy_stepper.skipped,
    )


def make_training_env(
    config: DictConfig, device: str, *, num_envs: int | None = None, seed: int | None = None
) -> EnvBase:
    """The envs that are collected from, or a part of them."""
    settings: dict[str, Any] = {**config.training_env, "seed": config.seed if seed is None else seed}
    if num_envs is not None:
        settings["num_envs"] = num_envs
    env = instantiate(config.env, **settings, device=device)
    # A planner starts afresh where an episode begins.
    return TransformedEnv(env, InitTracker(), auto_unwrap=True) if "planner" in config else env


def make_losses(config: DictConfig, env: EnvBase, device: str) -> tuple[PWMWorldModel, PWMLoss, PWMWorldModelLoss]:
    """A new world model and networks of the env's sizes, and the objectives, as configured."""
    # Of pictures, which a model with an encoder of one's own reads, the whole shape.
    shape, action = env.observation_spec_unbatched["observation"].shape, env.action_spec.shape[-1]
    observation = shape[0] if len(shape) == 1 else tuple(shape)
    termination = may_terminate(config.model.get("termination", False), config.task, env)
    sizes = {"observation_dim": observation, "action_dim": action, "termination": termination}
    model = instantiate(config.model, **sizes).to(device)
    actor = instantiate(config.actor, latent_dim=model.latent_dim, action_dim=action)
    value = instantiate(config.value, latent_dim=model.latent_dim)
    loss: PWMLoss = instantiate(config.loss, actor, value, model)
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=config.gamma, lmbda=config.lmbda)
    return model, loss.to(device), instantiate(config.model_loss, model)


def may_terminate(setting: bool | None, task: str, env: EnvBase) -> bool:
    """The setting of a termination head; ``None`` is for every env that may end an episode early, as far as one knows.

    A simulator says whether it does, the 80 tasks never do.
    """
    if setting is not None:
        return setting
    base = innermost_env(env)
    if isinstance(getattr(type(base), "terminates", None), property):
        return base.terminates
    return find_task_spec(task) is None


def make_stepper(
    config: DictConfig, loss: PWMLoss, model_loss: PWMWorldModelLoss, replay: ReplayBuffer
) -> OnlinePWMOptimizationStepper:
    """The optimisation, as configured; the model's learning rates fall over pre-training and iterations together."""
    settings = config.online
    model_updates = config.pretraining.updates + config.iterations * settings.model_updates
    stepper: OnlinePWMOptimizationStepper = instantiate(
        settings,
        loss,
        model_loss,
        replay,
        iterations=config.iterations,
        seed=config.seed,
        model_stepper=instantiate(config.model_stepper, model_loss, iterations=model_updates),
        policy_stepper=instantiate(config.stepper, loss, iterations=config.iterations * settings.policy_updates),
    )
    return stepper


def make_collector(
    config: DictConfig, env: EnvBase, policy: nn.Module, device: str, *, random_steps: int
) -> BaseCollector:
    """The collector of a run: in this process, or with the envs shared out over several."""
    num_envs, workers = env.batch_size.numel(), config.collector.workers
    batch = num_envs * config.collector.steps
    settings: dict[str, Any] = {
        "frames_per_batch": batch,
        "total_frames": -1,
        "init_random_frames": -(-random_steps // batch) * batch,  # whole batches, as TorchRL would warn
        "split_trajs": False,
        "auto_register_policy_transforms": False,
        "device": device,
    }
    shield_tracker()
    if workers < 2:
        return Collector(env, policy, **settings)
    if num_envs % workers:
        raise ValueError(f"collector.workers must divide the {num_envs} envs, found {workers}.")
    env.close(raise_if_closed=False)
    make = [
        partial(_make_worker_env, config, device, num_envs // workers, worker, os.getpid(), is_stoppable())
        for worker in range(workers)
    ]
    torchrl_logger.info(f"starting {workers} processes that collect, each of which imports torch first")
    with signals_wait():
        return MultiSyncCollector(make, policy, **settings, cat_results=0, use_buffers=True)


def _make_worker_env(
    config: DictConfig, device: str, num_envs: int, worker: int, parent: int, stoppable: bool
) -> EnvBase:
    """The envs of one worker. Env n of a worker has seed + n, so that the next worker's begin beyond them."""
    if stoppable and os.getpid() != parent:
        become_worker(finishes=False)
        end_with_parent()
    seed = config.seed + worker * num_envs
    # Apart from the seeds of envs, whose generators would draw the same numbers.
    seed_worker_process(1_000_003 * (seed + 1), parent)
    return make_training_env(config, device, num_envs=num_envs, seed=seed)


def _learn_from_recordings(
    config: DictConfig, folder: Path, trainer: OnlinePWMTrainer, num_envs: int, device: str
) -> None:
    """What precedes the first own step: the world model, then the warm start; and what stays in the replay.

    The model's updates are logged in ``pretraining/`` of the folder, with a checkpoint, from which they go on.
    """
    settings, stepper = config.pretraining, trainer.optimization_stepper.policy_stepper
    shown = settings.demonstrations or settings.data
    if _learns_from_recordings(config):
        recorded = open_sequences(config, settings.data)
        if settings.updates:
            trainer.pretrain(
                recorded,
                settings.updates,
                logger=make_logger(config, folder / PRETRAINING),
                log_interval=_PRETRAINING_LOG,
                save_folder=folder / PRETRAINING / "checkpoint",
                save_interval=_PRETRAINING_SAVE,
            )
        else:
            trainer.set_statistics(recorded)
        demonstrations = open_sequences(config, shown) if settings.demonstrations else recorded
        warm_start(trainer.loss_module, stepper, demonstrations, **settings.warm_start, device=device)
    if settings.keep:
        kept = open_steps(shown).select(*trainer.collection.keys, strict=False)
        extend_with_recorded(trainer.collection.replay_buffer, kept, num_envs)


def check_recordings(config: DictConfig, env: EnvBase) -> None:
    """Opens the recorded steps that a run begins with, if it does, so that what is wrong is named at once.

    Raises:
        FileNotFoundError: as :func:`open_steps`.
        ValueError: as :func:`open_steps`, and for steps that are not such as the env makes, or that cannot be kept in
            the replay of so many envs.
    """
    if not _learns_from_recordings(config):
        return
    settings = config.pretraining
    observation = tuple(env.observation_spec_unbatched["observation"].shape)
    shapes = {"observation": observation, "action": (env.action_spec.shape[-1],), ("next", "observation"): observation}
    shown = "demonstrations" if settings.demonstrations else "data"
    for name in dict.fromkeys(["data", shown]):
        steps = open_steps(settings[name])
        for key, shape in {**shapes, ("next", "reward"): (1,), ("next", "done"): (1,)}.items():
            found = steps.get(key, None)
            if found is None or found.shape[2:] != shape:
                sizes = ", ".join(map(str, shape))
                what = "none" if found is None else f"one of shape {list(found.shape)}"
                raise ValueError(
                    f"pretraining.{name}={settings[name]}: expected steps [N, T] of the env {config.task}, whose entry "
                    f"{key!r} has the shape [N, T, {sizes}], found {what}: record them with this env."
                )
        if settings.keep and name == shown and len(steps) % env.batch_size.numel():
            raise ValueError(
                f"pretraining.keep=true shares the {len(steps)} rows of pretraining.{name} out to "
                f"{env.batch_size.numel()} envs, which must divide them: set training_env.num_envs, or leave keep out."
            )


def _learns_from_recordings(config: DictConfig) -> bool:
    settings = config.pretraining
    shown = settings.demonstrations or settings.data
    return bool(shown or settings.updates or settings.keep or any(settings.warm_start.values()))


def open_sequences(config: DictConfig, data: str | Sequence[str] | None) -> ReplayBuffer:
    """Sequences of :func:`open_steps`, which are read into memory."""
    steps = open_steps(data)
    replay = make_online_replay(**{**config.replay, "capacity": steps.numel()}, seed=config.seed)
    extend_with_recorded(replay, steps, len(steps))
    return replay


def open_steps(data: str | Sequence[str] | None) -> TensorDictBase:
    """Recorded steps from one folder or several, each of a memory-mapped TensorDict ``[N, T]`` or of a data set.

    Several are joined along their rows.

    Raises:
        FileNotFoundError: if one is not there.
        ValueError: if one holds something else, or numbers of steps T differ.
    """
    folders = [data] if data is None or isinstance(data, str) else list(data)
    parts = [_open_folder(folder) for folder in folders]
    steps = {folder: part.shape[1] for folder, part in zip(folders, parts, strict=True)}
    if len(set(steps.values())) > 1:
        raise ValueError(f"the folders of pretraining.data must agree in the number of steps of a row, found {steps}.")
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _open_folder(folder: str | None) -> TensorDictBase:
    if folder and (Path(folder) / MANIFEST_NAME).exists():
        return store_transitions(folder)
    if not folder or not (Path(folder) / "meta.json").exists():
        raise FileNotFoundError(
            f"pretraining.data={folder}: expected the folder of a TensorDict [N, T] of transitions, as "
            "rollout.memmap(folder) writes it, with N envs and T steps, or of a data set."
        )
    data = read_memmap(folder)
    if data.ndim != 2:
        raise ValueError(f"pretraining.data must be a TensorDict [N, T], found batch {list(data.batch_size)}.")
    return data
