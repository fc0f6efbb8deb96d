"""The TensorDict side of a world model: its entries, and the parts that TorchRL's ``WorldModel`` names."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.modules import WorldModel

from torchrl_pwm.modules.multitask import TaskContext
from torchrl_pwm.modules.two_hot import RewardSpace


class WorldModelEntries(WorldModel):
    """A :class:`torchrl.modules.WorldModel` whose parts are views of tensor forms that a subclass gives.

    The views own no parameters, so that the state dict keeps the published layout.
    """

    @dataclass
    class _AcceptedKeys:
        observation: NestedKey = "observation"
        action: NestedKey = "action"
        task: NestedKey = "task"
        latent: NestedKey = "latent"
        reward: NestedKey = "reward"
        reward_logits: NestedKey = "reward_logits"
        termination_logits: NestedKey = "termination_logits"
        reconstruction: NestedKey = "reconstruction"

    num_tasks: int
    num_bins: int | None

    @property
    @abstractmethod
    def termination(self) -> bool:
        """Whether there is a termination head."""

    @abstractmethod
    def encode_observation(self, observation: Tensor, task: Tensor | int | None = None) -> Tensor:
        """Observations ``[*, O]`` to latents ``[*, D]``."""

    @abstractmethod
    def next_latent(self, latent: Tensor, action: Tensor, task: Tensor | int | TaskContext | None = None) -> Tensor:
        """Latents ``[*, D]`` and actions ``[*, A]`` to the next latents ``[*, D]``."""

    @abstractmethod
    def reward_logits(self, latent: Tensor, action: Tensor, task: Tensor | int | TaskContext | None = None) -> Tensor:
        """Output ``[*, K]`` of the reward head."""

    @abstractmethod
    def decode_reward(self, logits: Tensor, space: RewardSpace = "raw") -> Tensor:
        """Output of the reward head ``[*, K]`` to rewards ``[*, 1]``."""

    @abstractmethod
    def termination_logits(self, latent: Tensor, task: Tensor | int | None = None) -> Tensor:
        """Logits ``[*, 1]`` of an episode's end at latents ``[*, D]``."""

    def set_keys(self, **keys: NestedKey) -> None:
        """Renames the entries that the model reads and writes.

        Keyword Args:
            observation, action, task, latent, reconstruction: entries of the root.
            reward, reward_logits, termination_logits: entries under ``"next"``.

        Raises:
            ValueError: if a name is none of these.
        """
        known = {field.name for field in fields(self._AcceptedKeys)}
        for name, key in keys.items():
            if name not in known:
                raise ValueError(f"{name!r} is not a key of the world model: expected one of {sorted(known)}.")
            setattr(self.tensor_keys, name, unravel_key(key))
        self.in_keys = [self.tensor_keys.observation, self.tensor_keys.action, *self._task_keys]
        self.out_keys = [self.tensor_keys.latent, *self._step_out_keys]

    @property
    def renamed_keys(self) -> dict[str, NestedKey]:
        """Entries that :meth:`set_keys` gave other names than they have by default."""
        names = {field.name: getattr(self.tensor_keys, field.name) for field in fields(self._AcceptedKeys)}
        return {name: key for name, key in names.items() if key != getattr(self._AcceptedKeys, name)}

    def encode(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes ``latent`` from ``observation`` (and ``task``)."""
        return self.encoder(tensordict)

    def step(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes ``("next", "latent")`` and ``("next", "reward")`` from ``latent`` and ``action`` (and ``task``)."""
        return self.step_module(tensordict)

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """:meth:`encode`, then :meth:`step`."""
        return self.step(self.encode(tensordict))

    @property
    def encoder(self) -> TensorDictModule:
        return TensorDictModule(
            self.encode_observation,
            in_keys=[self.tensor_keys.observation, *self._task_keys],
            out_keys=[self.tensor_keys.latent],
        )

    @property
    def dynamics(self) -> TensorDictModule:
        return TensorDictModule(
            self.next_latent, in_keys=self._step_in_keys, out_keys=[self._next(self.tensor_keys.latent)]
        )

    @property
    def reward_head(self) -> TensorDictModule:
        return TensorDictModule(self._rewards, in_keys=self._step_in_keys, out_keys=self._reward_keys)

    @property
    def done_head(self) -> TensorDictModule | None:
        """The termination head on the latents of next states, or None."""
        if not self.termination:
            return None
        read = [self._next(self.tensor_keys.latent), *self._task_keys]
        return TensorDictModule(
            self.termination_logits, in_keys=read, out_keys=[self._next(self.tensor_keys.termination_logits)]
        )

    @property
    def step_module(self) -> TensorDictSequential:
        ends = [] if self.done_head is None else [self.done_head]
        return TensorDictSequential(self.dynamics, self.reward_head, *ends)

    @property
    def decoder(self) -> TensorDictModule | None:
        """The observation decoder on latents, or None."""
        if not self.has_decoder:
            return None
        read = [self.tensor_keys.latent, *self._task_keys]
        return TensorDictModule(self.decode_observation, in_keys=read, out_keys=[self.tensor_keys.reconstruction])

    # Of the observation decoder.
    has_decoder: Any
    decode_observation: Any

    def _rewards(self, latent: Tensor, action: Tensor, task: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        logits = self.reward_logits(latent, action, task)
        reward = self.decode_reward(logits)
        return (reward, logits) if self.num_bins else reward

    @property
    def _task_keys(self) -> list[NestedKey]:
        return [self.tensor_keys.task] if self.num_tasks else []

    @property
    def _step_in_keys(self) -> list[NestedKey]:
        return [self.tensor_keys.latent, self.tensor_keys.action, *self._task_keys]

    @property
    def _step_out_keys(self) -> list[NestedKey]:
        ends = [self._next(self.tensor_keys.termination_logits)] if self.termination else []
        return [self._next(self.tensor_keys.latent), *self._reward_keys, *ends]

    @property
    def _reward_keys(self) -> list[NestedKey]:
        names = [self.tensor_keys.reward, *([self.tensor_keys.reward_logits] if self.num_bins else [])]
        return [self._next(name) for name in names]

    @staticmethod
    def _next(key: NestedKey) -> NestedKey:
        return unravel_key(("next", key))
