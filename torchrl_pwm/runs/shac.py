"""SHAC in one simulator: training, evaluation beside baselines, and the files of the run."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torchrl.envs import EnvBase, RewardScaling, TransformedEnv
from torchrl.objectives import ValueEstimators

from torchrl_pwm._utils.devices import choose_device
from torchrl_pwm.objectives import SHACLoss
from torchrl_pwm.runs.evaluator import EvaluatedRun, Evaluator
from torchrl_pwm.runs.folder import finished
from torchrl_pwm.trainers.shac import SHACTrainer

_PANELS = {"return of an episode": ("real_return",), "reward of a step": ("reward_mean",)}


def run_shac(config: DictConfig, folder: Path) -> Path:
    """Runs what is left of the run in ``folder`` and returns the path of its ``summary.json``.

    The folder then holds the configuration, the metrics, the checkpoint, ``policy.pt`` (the state dict of the loss's
    ``policy``), ``training.png`` and the summary: returns of whole episodes of the policy, of the last and the best
    one in an evaluation during training (``select`` says which counts), of the untrained one, of random actions, of
    none (zeros) and of the hand-written controller where there is one, all from the same start states.

    Raises:
        ImportError, ValueError: if the simulator is not installed, or an option is unknown.
        FloatingPointError: if a number is not finite, see :class:`SHACOptimizationStepper`.
    """
    if summary := finished(config, folder):
        return summary
    target = str(config.env.get("_target_", "")).rpartition(".")[-1]
    if target in ("make_gym_env", "make_task_env", "make_task_envs"):
        raise ValueError(
            f"SHAC follows the gradient of a differentiable simulator, which {config.env.task} is not: take a "
            f"simulator with env=..., or PWM, which learns a model of it, with `torchrl-pwm online env=...`."
        )
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    env: EnvBase = instantiate(config.env, **config.training_env, requires_grad=True, seed=config.seed, device=device)
    if config.reward_scale != 1:
        env = TransformedEnv(env, RewardScaling(loc=0.0, scale=config.reward_scale))
    evaluator = Evaluator(config, device)
    loss = make_shac_loss(config, env).to(device)
    run = EvaluatedRun(config, folder, evaluator, loss.policy, loss.policy)
    trainer = SHACTrainer(
        loss,
        env,
        optimization_stepper=instantiate(config.stepper, loss, iterations=config.iterations),
        **run.options(),
    )
    with run.evaluation:
        run.resume(trainer)
        trainer.train()
    return run.finish(
        {"policy.pt": loss.policy},
        steps=config.iterations * config.loss.horizon * env.batch_size.numel(),
        panels=_PANELS,
        xlabel="window",
        skipped=trainer.optimization_stepper.skipped,
    )


def make_shac_loss(config: DictConfig, env: EnvBase) -> SHACLoss:
    """New networks of the env's sizes, and the objective, as configured."""
    observation, action = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    normalizer = instantiate(config.normalizer, observation_dim=observation) if config.normalize_observations else None
    key = "observation" if normalizer is None else normalizer.out_keys[0]
    actor = instantiate(config.actor, latent_dim=observation, action_dim=action, in_key=key)
    value = instantiate(config.value, latent_dim=observation, in_key=key)
    loss: SHACLoss = instantiate(config.loss, actor, value, normalizer=normalizer)
    return loss.make_value_estimator(ValueEstimators.TDLambda, gamma=config.gamma, lmbda=config.lmbda)
