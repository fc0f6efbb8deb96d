"""Proximal policy optimisation on one env, with TorchRL's ClipPPOLoss and generalised advantage estimates.

    python -m benchmarks.learning.methods.ppo env=analytic/double_pendulum
    python -m benchmarks.learning.methods.ppo resume=runs/2026-11-21_cartpole_swingup

The options are in conf/ppo.yaml and conf/model_free.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torchrl.data import Bounded, ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE
from torchrl.trainers import OptimizationStepper

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from benchmarks.learning.methods.model_free import Parts, run_script
from torchrl_pwm._utils.devices import place_buffers, readable
from torchrl_pwm._utils.gated_steps import linear_schedule
from torchrl_pwm.modules import ObservationNormalizer

_KEY = "normalized_observation"


class PPOStepper(OptimizationStepper):
    """One iteration: advantages of the newest steps ``[N, T]``, and several passes over them in minibatches."""

    def __init__(self, loss: ClipPPOLoss, normalizer: ObservationNormalizer, config: DictConfig) -> None:
        self.loss, self.normalizer, self.config = loss, normalizer, config
        self.advantage = GAE(gamma=config.gamma, lmbda=config.lmbda, value_network=loss.critic_network)
        self.advantage.to(normalizer.moments.mean.device)
        self.optimizer = torch.optim.Adam(loss.parameters(), config.lr, eps=1e-5, fused=True)
        self.schedule = linear_schedule(self.optimizer, 0.0, config.iterations)
        self.generator = torch.Generator().manual_seed(config.seed)

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        """The metrics are those of the last minibatch.

        Raises:
            FloatingPointError: if a loss is not finite, before the step.
        """
        config, batch = self.config, sub_batch.clone()
        batch["next", "reward"] = batch["next", "reward"] * config.reward_scale
        self.normalizer(batch["next"])
        with torch.no_grad():
            self.advantage(batch)
        steps = batch.reshape(-1)
        for _ in range(config.epochs):
            for indices in torch.randperm(len(steps), generator=self.generator).split(config.batch_size):
                losses = self.loss(steps[indices])
                total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                if readable(total) and not total.isfinite():
                    raise FloatingPointError(f"the PPO loss is {total.item()}; try a smaller lr")
                self.optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(self.loss.parameters(), config.grad_norm)
                self.optimizer.step()
        self.schedule.step()
        # Only now: the probabilities of these actions belong to the moments that they were chosen with.
        if config.normalize_observations:
            self.normalizer.update(sub_batch)
        scalars = losses.detach().select(*(key for key, value in losses.items() if value.numel() == 1))
        return scalars.set("loss_actor", scalars["loss_objective"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.schedule.load_state_dict(state_dict["schedule"])
        self.generator.set_state(state_dict["generator"])


def make_ppo(config: DictConfig, env: EnvBase, normalizer: ObservationNormalizer, replay: ReplayBuffer) -> Parts:
    """Networks of the env's sizes, TorchRL's loss and the updates."""
    observation, action = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    device = normalizer.moments.mean.device
    sizes = {"num_cells": list(config.units), "activation_class": nn.Tanh}
    mean = MLP(observation, action, **sizes)
    scale = AddStateIndependentNormalScale(action, scale_mapping="exp", scale_lb=1e-3)
    layers = [layer for layer in mean if isinstance(layer, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, 0.01 if layer is layers[-1] else math.sqrt(2))
        nn.init.zeros_(layer.bias)
    nn.init.constant_(scale.state_independent_scale, math.log(config.first_std))
    actor = ProbabilisticActor(
        TensorDictModule(nn.Sequential(mean, scale).to(device), [_KEY], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=Bounded(-1.0, 1.0, (action,), device=device),
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(MLP(observation, 1, **sizes).to(device), in_keys=[_KEY])
    loss = ClipPPOLoss(
        actor,
        critic,
        clip_epsilon=config.clip,
        entropy_coeff=config.entropy_coef,
        critic_coeff=config.critic_coef,
        loss_critic_type="l2",
        normalize_advantage=True,
    )
    place_buffers(loss)
    return Parts(loss, actor, PPOStepper(loss, normalizer, config))


if __name__ == "__main__":
    run_script("ppo", make_ppo)
