"""Soft actor-critic: a learner for any env, and episodes of one task that go from random to expert."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate, ValueEstimators

from torchrl_pwm._utils.devices import place_buffers, readable, spec_on
from torchrl_pwm._utils.finite import refuse_bad_update
from torchrl_pwm._utils.seeds import seeded, uniform_actions
from torchrl_pwm.data.store.episodes import Episode, EpisodeRecorder
from torchrl_pwm.envs.multitask import innermost_env

__all__ = ["SACConfig", "SACLearner", "sac_episodes"]


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """Settings of the soft actor-critic that collects data (Haarnoja et al., arXiv 1812.05905).

    Args:
        random_steps: steps with uniform actions before the first update.
        updates_per_step: gradient steps per env step; below one, one every ``1 / updates_per_step`` steps.
        batch_size: transitions of an update.
        units: hidden layers of actor and critics.
        learning_rate: of Adam, for actor, critics and temperature.
        target_rate: share of the new weights in each update of the target critics.
        first_alpha: temperature at the beginning; it is learned so that the entropy is minus the action size.
        discount: None takes the task's own (0.99 DMControl, 0.95 Meta-World).
    """

    random_steps: int = 1000
    updates_per_step: float = 1.0
    batch_size: int = 256
    units: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    target_rate: float = 0.005
    first_alpha: float = 0.1
    discount: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))
        if self.updates_per_step < 0 or self.random_steps < 1 or self.batch_size < 1:
            raise ValueError(
                "SAC needs random_steps and batch_size of at least 1 and updates_per_step of at least 0, found "
                f"{self.random_steps}, {self.batch_size} and {self.updates_per_step}"
            )


class SACLearner:
    """Actor, critics and their update: TorchRL's loss and target update.

    Args:
        observation_dim: size O of the observation.
        action_dim: size A of the action, which is in [-1, 1].
        config: settings; ``discount`` and what decides when to update are left to the caller.
        discount: of a step.
        observation_key: entry that the networks read.
        device: of the networks; batches are on it.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        config: SACConfig,
        discount: float,
        *,
        observation_key: str = "observation",
        device: torch.device | str = "cpu",
    ) -> None:
        # Drawn on the CPU, so that they are the same everywhere.
        head = MLP(observation_dim, 2 * action_dim, num_cells=config.units, activation_class=nn.ReLU).to(device)
        spec = spec_on(Bounded(-1.0, 1.0, (action_dim,)), device)
        self.actor = ProbabilisticActor(
            TensorDictModule(nn.Sequential(head, NormalParamExtractor()), [observation_key], ["loc", "scale"]),
            in_keys=["loc", "scale"],
            spec=spec,
            distribution_class=TanhNormal,
            return_log_prob=False,
        )
        critic = MLP(observation_dim + action_dim, 1, num_cells=config.units, activation_class=nn.ReLU).to(device)
        self.loss = SACLoss(
            self.actor,
            ValueOperator(critic, in_keys=[observation_key, "action"]),
            action_spec=spec,
            loss_function="l2",
            alpha_init=config.first_alpha,
        )
        self.loss.make_value_estimator(ValueEstimators.TD0, gamma=discount)
        place_buffers(self.loss)
        self.targets = SoftUpdate(self.loss, tau=config.target_rate)
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=config.learning_rate, fused=True)
        self.updates = 0
        self._head = head
        self._extract = NormalParamExtractor()

    def update(self, batch: TensorDictBase) -> TensorDictBase:
        """One step of everything from transitions [B]; returns the losses.

        Raises:
            FloatingPointError: if the batch, the loss or the gradient is not finite.
        """
        losses = self.loss(batch)
        total = losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]
        self.optimizer.zero_grad()
        total.backward()
        self.updates += 1
        if readable(total):
            refuse_bad_update("soft actor-critic", self.updates, {"loss": total}, self.loss.parameters(), batch)
        self.optimizer.step()
        self.targets.step()
        return losses.detach()

    @torch.no_grad()
    def act(self, observation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Samples an action [A]."""
        loc, scale = self._extract(self._head(observation))
        return torch.tanh(loc + scale * torch.randn(loc.shape, generator=generator).to(loc))


def sac_episodes(
    env: EnvBase, config: SACConfig, *, episodes: int, length: int, discount: float, seed: int
) -> Iterator[Episode]:
    """Trains on a task and yields every episode of the training.

    The global generator of torch is seeded within a fork while the learner works, and restored between episodes.

    Args:
        env: task env without padding.
        config: settings.
        episodes: number of episodes.
        length: steps of an episode.
        discount: discount where the settings give none.
        seed: seed of weights, actions, minibatches and the loss's own samples.
    """
    task, generator = innermost_env(env).task_spec.name, torch.Generator().manual_seed(seed)
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(episodes * length),
        batch_size=config.batch_size,
        generator=torch.Generator().manual_seed(seed + 1),
    )
    observation_dim, action_dim = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    with seeded(seed):
        learner = SACLearner(observation_dim, action_dim, config, config.discount or discount)
        state = torch.get_rng_state()
    false = torch.zeros(1, dtype=torch.bool)
    steps, pending_updates = 0, 0.0
    for _ in range(episodes):
        recorder = EpisodeRecorder(env.reset(), task)
        # other code may draw between two episodes: the loss goes on with its own stream
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            for _ in range(length):
                td = recorder.td
                if steps < config.random_steps:
                    action = uniform_actions(action_dim, generator=generator)
                else:
                    action = learner.act(td["observation"], generator)
                following = recorder.step(env, action)
                replay.add(
                    TensorDict(
                        {
                            "observation": td["observation"],
                            "action": action,
                            ("next", "observation"): following["observation"],
                            ("next", "reward"): following["reward"],
                            # a time-out is no end of the task: its value is still bootstrapped
                            ("next", "done"): false,
                            ("next", "terminated"): false,
                        }
                    )
                )
                steps += 1
                if steps >= config.random_steps:
                    pending_updates += config.updates_per_step
                    while pending_updates >= 1.0:
                        learner.update(replay.sample())
                        pending_updates -= 1.0
            state = torch.get_rng_state()
        yield recorder.episode()
