"""Online TD-MPC2: one env's own steps, evaluation with and without planning, and the files of the run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torchrl.envs import EnvBase

from torchrl_pwm._utils.devices import choose_device
from torchrl_pwm.data import make_online_replay
from torchrl_pwm.envs.multitask import innermost_env
from torchrl_pwm.evaluation.scores import find_task_spec
from torchrl_pwm.modules import TDMPC2Model
from torchrl_pwm.objectives import TDMPC2Loss
from torchrl_pwm.planners import TDMPC2Planner
from torchrl_pwm.runs.evaluator import EvaluatedRun, Evaluator
from torchrl_pwm.runs.folder import finished
from torchrl_pwm.runs.pwm_online import make_collector, make_training_env, may_terminate
from torchrl_pwm.trainers.tdmpc2 import OnlineTDMPC2OptimizationStepper, OnlineTDMPC2Trainer

_PANELS = {
    "return of an episode": ("real_return",),
    "reward of a step": ("collected_reward",),
    "error of the model's reward": ("reward_error",),
}
_EPISODE_LENGTH = 500  # steps, where nothing tells it


def run_online_tdmpc2(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    With ``select=best`` the model that did best in an evaluation during training counts, on start states that the
    final evaluation does not see, else the last one. The folder then holds the configuration, the metrics, the
    checkpoint, ``model.pt`` (state dict of the :class:`~torchrl_pwm.TDMPC2Model`), ``training.png`` and the summary:
    returns of whole episodes of the planner and of the policy prior alone, of both with the last and with the best
    model, of the untrained model, of random actions, of none (zeros) and of the hand-written controller where there is
    one, all from the same start states.

    A run in this process that is interrupted and resumed ends with the numbers of one that was not.

    Raises:
        ImportError, ValueError: if a simulator is not installed, or an option is unknown.
        FloatingPointError: if a number is not finite.
    """
    if summary := finished(config, folder):
        return summary
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    evaluator = Evaluator(config, device)
    env = make_training_env(config, device)
    model = make_model(config, env).to(device)
    loss: TDMPC2Loss = instantiate(config.loss, model)
    # Every batch of envs has a planner of its own, which keeps its plans.
    acting, evaluated = (make_planner(config, model, plan) for plan in (config.collector.plan, config.evaluation.plan))
    # With a generator of its own, its evaluation changes no draw of the planner's.
    prior = make_planner(config, model, False, torch.Generator(device))
    run = EvaluatedRun(config, folder, evaluator, evaluated, model)
    replay = make_online_replay(**config.replay, seed=config.seed)
    updates = config.iterations * config.online.updates + config.warmup_updates
    stepper: OnlineTDMPC2OptimizationStepper = instantiate(
        config.online, loss, replay, stepper=instantiate(config.stepper, loss, iterations=updates)
    )
    trainer = OnlineTDMPC2Trainer(
        loss,
        make_collector(config, env, acting, device, random_steps=run.random_steps),
        replay,
        warmup_steps=config.collector.random_steps,
        episode_seed=config.seed if config.collector.workers < 2 else None,
        optimization_stepper=stepper,
        **run.online_options(),
    )
    with run.evaluation, contextlib.closing(trainer):
        run.resume(trainer)
        trainer.train()
    return run.finish(
        {"model.pt": model},
        steps=trainer.env_steps,
        panels=_PANELS,
        policies={"policy without planning": prior} if config.evaluation.plan else {},
    )


def make_model(config: DictConfig, env: EnvBase) -> TDMPC2Model:
    """A new model of the env's sizes, as configured."""
    observation, action = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    world_model = instantiate(config.model, observation_dim=observation, action_dim=action)
    options = {
        "episode_lengths": config.heads.episode_lengths or episode_length(config.task, env),
        "episodic": may_terminate(config.heads.episodic, config.task, env),
    }
    return instantiate(config.heads, world_model, **options)


def episode_length(task: str, env: EnvBase) -> int:
    """Steps of an episode, from which the discount follows: of the task's table, else of the simulator, else 500."""
    spec = find_task_spec(task)
    length: Any = getattr(innermost_env(env), "episode_length", None) if spec is None else spec.episode_length
    return length or _EPISODE_LENGTH


def make_planner(
    config: DictConfig, model: TDMPC2Model, plan: bool, generator: torch.Generator | None = None
) -> TDMPC2Planner:
    """A planner with the configured settings, or with ``plan=False`` the policy prior in its place."""
    return instantiate(config.planner, model, plan=plan, generator=generator)
