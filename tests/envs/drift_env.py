"""A small batched env, with or without tasks, whose episodes end at different times."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase


class DriftEnv(EnvBase):
    """o' = o + (a, 0, ...); env b ends after b + 2 steps. Starts are drawn from the env's own generator."""

    def __init__(self, batch_size=(), num_tasks=0, task_in_next=True, bound=1.0, dtype=torch.float32, device="cpu"):
        super().__init__(batch_size=torch.Size(batch_size), device=device)
        batch = self.batch_size
        leaves = {"observation": Unbounded((*batch, 5), dtype=dtype)}
        if num_tasks and task_in_next:
            leaves["task"] = Categorical(num_tasks, batch, dtype=torch.int64)
        self.num_tasks, self.task_in_next = num_tasks, task_in_next
        self.observation_spec = Composite(leaves, shape=batch)
        self.action_spec = Bounded(-bound, bound, (*batch, 2))
        self.reward_spec = Unbounded((*batch, 1))
        self.generator = torch.Generator().manual_seed(0)
        self.resets, self.kind = 0, dtype

    def _reset(self, tensordict=None):
        batch = self.batch_size
        self.resets += 1
        fresh = torch.randn(*batch, 5, generator=self.generator).to(self.kind)
        rows = torch.ones(*batch, 1, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            rows = tensordict["_reset"].reshape(*batch, 1)
        else:
            self.position, self.steps = fresh, torch.zeros(*batch, 1, dtype=torch.int64)
        self.position = torch.where(rows, fresh, self.position)
        self.steps = torch.where(rows, 0, self.steps)
        out = self._observe()
        return out if not self.num_tasks else out.set("task", self._tasks())

    def _step(self, tensordict):
        self.position = self.position + torch.nn.functional.pad(tensordict["action"], (0, 3))
        self.steps = self.steps + 1
        done = self.steps >= 2 + torch.arange(self.batch_size.numel()).reshape(*self.batch_size, 1)
        reward = self.position.sum(-1, keepdim=True).float()
        out = self._observe().update({"reward": reward, "done": done, "terminated": done})
        return out.set("task", self._tasks()) if self.num_tasks and self.task_in_next else out

    def _observe(self):
        return TensorDict({"observation": self.position.clone()}, self.batch_size)

    def _tasks(self):
        return torch.arange(self.batch_size.numel()).reshape(self.batch_size) % self.num_tasks

    def _set_seed(self, seed):
        self.generator.manual_seed(seed)
