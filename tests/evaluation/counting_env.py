"""A batched env whose returns and lengths are known."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase


class CountingEnv(EnvBase):
    """Observation: [steps taken, episode number, seed]. Reward: 1 + action, plus ``bonus``.

    Args:
        lengths: steps per episode, one number per env.
        faults: key ("reward", "observation") to (env, episode, step) where it is NaN.
        success: whether to write success, which is true after an even number of steps.
        pixels: whether to write pixels, whose value is the number of steps taken.
    """

    def __init__(
        self,
        lengths: list[int] | int = 5,
        *,
        bonus: float = 0.0,
        faults: dict[str, tuple[int, int, int]] | None = None,
        success: bool = False,
        pixels: bool = False,
        draw: bool = False,
    ) -> None:
        batch = [] if isinstance(lengths, int) else [len(lengths)]
        super().__init__(batch_size=torch.Size(batch))
        self.lengths = torch.tensor(lengths).reshape(-1)
        self.bonus, self.faults, self.success, self.pixels, self.draw = bonus, faults or {}, success, pixels, draw
        self.seed_used = -1
        self.closed = False
        n = self.lengths.numel()
        self.count, self.episode = torch.zeros(n, dtype=torch.int64), torch.full((n,), -1)
        entries: dict[str, Any] = {"observation": Unbounded((*batch, 3))}
        if success:
            entries["success"] = Binary(1, shape=(*batch, 1), dtype=torch.bool)
        if pixels:
            entries["pixels"] = Bounded(0, 255, (*batch, 4, 6, 3), dtype=torch.uint8)
        self.observation_spec = Composite(entries, shape=batch)
        self.action_spec = Bounded(-1.0, 1.0, (*batch, 1))
        self.reward_spec = Unbounded((*batch, 1))
        self.done_spec = Composite(
            {key: Binary(1, shape=(*batch, 1), dtype=torch.bool) for key in ("done", "terminated", "truncated")},
            shape=batch,
        )

    def _set_seed(self, seed: int | None) -> None:
        self.seed_used = -1 if seed is None else seed
        self.episode.fill_(-1)
        if self.draw:
            # as many published envs do
            torch.manual_seed(self.seed_used)

    def _faulty(self, key: str) -> torch.Tensor:
        env, episode, step = self.faults.get(key, (-1, -1, -1))
        return (torch.arange(len(self.count)) == env) & (self.episode == episode) & (self.count == step)

    def _state(self) -> dict[str, torch.Tensor]:
        observation = torch.stack([self.count, self.episode, torch.full_like(self.count, self.seed_used)], -1).float()
        observation[self._faulty("observation")] = float("nan")
        state = {"observation": observation.reshape(*self.batch_size, 3)}
        if self.success:
            state["success"] = (self.count % 2 == 0).reshape(*self.batch_size, 1)
        if self.pixels:
            image = self.count.to(torch.uint8)[:, None, None, None].expand(-1, 4, 6, 3)
            state["pixels"] = image.reshape(*self.batch_size, 4, 6, 3).clone()
        return state

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        chosen = torch.ones_like(self.count, dtype=torch.bool)
        if tensordict is not None and tensordict.get("_reset", None) is not None:
            chosen = tensordict["_reset"].reshape(-1)
        self.count[chosen] = 0
        self.episode[chosen] += 1
        return TensorDict(self._state(), self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        reward = 1.0 + self.bonus + tensordict["action"].reshape(-1)
        if self.draw:
            reward = reward + torch.rand(reward.shape)
        reward = torch.where(self._faulty("reward"), float("nan"), reward)
        self.count += 1
        over = (self.count >= self.lengths).reshape(*self.batch_size, 1)
        ends = {"done": over, "truncated": over, "terminated": torch.zeros_like(over)}
        return TensorDict(
            {**self._state(), "reward": reward.reshape(*self.batch_size, 1), **{k: v.clone() for k, v in ends.items()}},
            self.batch_size,
        )

    def close(self, *, raise_if_closed: bool = True) -> None:
        self.closed = True
        super().close(raise_if_closed=raise_if_closed)
