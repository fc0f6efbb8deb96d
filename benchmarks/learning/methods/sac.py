"""Soft actor-critic on one env, with TorchRL's SACLoss and the learner that collects this package's data.

    python -m benchmarks.learning.methods.sac env=analytic/double_pendulum
    python -m benchmarks.learning.methods.sac resume=runs/2026-11-21_cartpole_swingup

The options are in conf/sac.yaml and conf/model_free.yaml. The last line printed is the path of summary.json.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.trainers import OptimizationStepper

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from benchmarks.learning.methods.model_free import Parts, run_script
from torchrl_pwm._utils.devices import send
from torchrl_pwm.data.collect.sac import SACConfig, SACLearner
from torchrl_pwm.modules import ObservationNormalizer


class SACStepper(OptimizationStepper):
    """One iteration: updates from replayed transitions, with normalised observations and scaled rewards."""

    def __init__(
        self,
        learner: SACLearner,
        normalizer: ObservationNormalizer,
        replay: ReplayBuffer,
        *,
        updates: int,
        reward_scale: float,
    ) -> None:
        self.learner, self.normalizer, self.replay = learner, normalizer, replay
        self.updates, self.reward_scale = updates, reward_scale

    def step(self, trainer: Any, sub_batch: TensorDictBase) -> TensorDictBase:
        for _ in range(self.updates):
            metrics = self.update_model()
        return metrics

    def update_model(self) -> TensorDictBase:
        """One update."""
        batch = send(self.replay.sample().reshape(-1), self.normalizer.moments.mean.device)
        self.normalizer(batch)
        self.normalizer(batch["next"])
        batch["next", "reward"] *= self.reward_scale
        return self.learner.update(batch)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.learner.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.learner.optimizer.load_state_dict(state_dict["optimizer"])


def make_sac(config: DictConfig, env: EnvBase, normalizer: ObservationNormalizer, replay: ReplayBuffer) -> Parts:
    """Networks of the env's sizes, TorchRL's loss and the updates."""
    settings: Any = OmegaConf.to_container(config.learner, resolve=True)
    learner = SACLearner(
        env.observation_spec["observation"].shape[-1],
        env.action_spec.shape[-1],
        SACConfig(**settings),
        config.gamma,
        observation_key="normalized_observation",
        device=normalizer.moments.mean.device,
    )
    stepper = SACStepper(learner, normalizer, replay, updates=config.updates, reward_scale=config.reward_scale)
    return Parts(learner.loss, learner.actor, stepper)


if __name__ == "__main__":
    run_script("sac", make_sac)
