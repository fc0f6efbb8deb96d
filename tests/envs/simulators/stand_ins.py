"""Objects with the documented interfaces of DFlex (PWM's fork) and rewarped, around a physics of two lines."""

from __future__ import annotations

import types
from functools import partial

import numpy as np
import torch


class FakeDFlexEnv:
    """Resets itself what is done, keeps buffers and changes them in place, draws from torch's global generator.

    The reward is that of the observation before the step. Gradients depend on ``config.no_grad`` at each step.
    """

    config = types.SimpleNamespace(no_grad=False)
    sizes = (5, 1)

    def __init__(
        self,
        num_envs=4096,
        episode_length=240,
        no_grad=True,
        render=False,
        stochastic_init=False,
        MM_caching_frequency=1,
        early_termination=True,
        device="cuda:0",
        **settings,
    ):
        assert isinstance(device, str)
        self.settings = settings | {"stochastic_init": stochastic_init, "MM_caching_frequency": MM_caching_frequency}
        self.num_envs, self.episode_length, self.no_grad, self.device = num_envs, episode_length, no_grad, device
        self.num_obs, self.num_acts = self.sizes
        self.num_observations, self.num_actions = self.sizes
        self.early_termination = early_termination
        self.stiffness = 1 + torch.rand(1).item()  # drawn while building
        self.config.no_grad = no_grad
        self.limit = np.inf if not early_termination else 3.0
        self.progress_buf = torch.zeros(num_envs, dtype=torch.long)
        self.obs_buf = torch.zeros(num_envs, self.num_obs)
        self.rew_buf = torch.zeros(num_envs)
        self.joint_q = torch.zeros(num_envs * self.num_obs)
        self.resets = []

    def _q(self):
        return self.joint_q.view(self.num_envs, -1)

    def reset(self, env_ids=None, grads=False, force_reset=False):
        if grads:
            return self.initialize_trajectory()
        env_ids = torch.arange(self.num_envs) if env_ids is None else env_ids
        self.resets.append(env_ids.tolist())
        q = self._q().clone()
        q[env_ids] = torch.rand(len(env_ids), self.num_obs) - 0.5
        self.joint_q = q.flatten()
        self.progress_buf[env_ids] = 0
        self.obs_buf = self._q().clone()
        return self.obs_buf

    def step(self, actions, play=False):
        actions = actions.clip(-1, 1)
        self.rew_buf = -self.obs_buf.square().sum(-1)
        moved = 0.9 * self._q() + self.stiffness * 0.3 * actions.sum(-1, keepdim=True)
        self.joint_q = (moved.detach() if self.config.no_grad else moved).flatten()
        self.progress_buf += 1
        self.obs_buf = self._q().clone()
        truncation = self.progress_buf >= self.episode_length
        termination = self.obs_buf.detach().abs().amax(-1) > self.limit
        extras = {"obs_before_reset": self.obs_buf.clone(), "termination": termination, "truncation": truncation}
        done = truncation | termination
        if done.any():
            self.reset(done.nonzero().flatten())
        return self.obs_buf, self.rew_buf, done, extras

    def initialize_trajectory(self):
        self.clear_grad()
        self.obs_buf = self._q().clone()
        return self.obs_buf

    def clear_grad(self, checkpoint=None):
        checkpoint = self.get_checkpoint() if checkpoint is None else checkpoint
        self.joint_q = checkpoint["joint_q"].detach().clone()
        self.progress_buf = checkpoint["progress_buf"].clone()

    def get_checkpoint(self):
        return {"joint_q": self.joint_q.clone(), "progress_buf": self.progress_buf.clone()}


class FakeRewarpedEnv(FakeDFlexEnv):
    """Builds its buffers at the first reset; no terminal observation where nothing was reset; other flag names.

    Without early termination, ``terminated`` is a copy of ``truncated``, and only all envs can be reset. The reset of
    some envs cuts the graph of all.
    """

    def __init__(self, num_envs=64, no_grad=False, early_termination=True, **settings):
        super().__init__(num_envs, no_grad=no_grad, early_termination=early_termination, **settings)
        self.initialized = False
        del self.num_acts, self.progress_buf
        self.num_act = self.num_actions

    def reset(self, env_ids=None, clear_grad=False):
        if not self.initialized:
            self.progress_buf = torch.zeros(self.num_envs, dtype=torch.int)
            self.initialized = True
        assert self.early_termination or env_ids is None or len(env_ids) == self.num_envs
        self.joint_q = self.joint_q.detach()
        return super().reset(env_ids)

    def step(self, actions):
        self.config.no_grad = self.no_grad
        *rest, extras = super().step(actions)
        terminated, truncated = extras["termination"], extras["truncation"]
        none = not (terminated | truncated).any()
        before = None if none else extras["obs_before_reset"]
        terminated = terminated if self.early_termination else truncated.clone()
        return *rest, {"obs_before_reset": before, "terminated": terminated, "truncated": truncated}

    def get_checkpoint(self, detach=False):
        return {"state": {"joint_q": self.joint_q.clone()}, "control": {}}

    def clear_grad(self, checkpoint=None):
        checkpoint = self.get_checkpoint() if checkpoint is None else checkpoint
        self.joint_q = checkpoint["state"]["joint_q"].detach().clone()


def dflex_modules():
    """Modules of a stand-in ``dflex``, by name."""
    root, envs = types.ModuleType("dflex"), types.ModuleType("dflex.envs")
    root.config = FakeDFlexEnv.config
    root.config.no_grad = False
    pendulum = types.ModuleType("dflex.envs.double_pendulum")
    sizes = {"CartPoleSwingUp": (5, 1), "Hopper": (11, 3), "Ant": (37, 8), "Anymal": (49, 12), "Humanoid": (76, 21)}
    sizes |= {"SNUHumanoid": (53, 152), "DoublePendulum": (6, 1)}
    for name, size in sizes.items():
        home = pendulum if name == "DoublePendulum" else envs
        setattr(home, f"{name}Env", type(f"{name}Env", (FakeDFlexEnv,), {"sizes": size}))
    return {"dflex": root, "dflex.envs": envs, "dflex.envs.double_pendulum": pendulum}


def rewarped_modules():
    """Modules of a stand-in ``rewarped`` and of the ``warp`` that it needs, by name."""
    names = ("rewarped", "rewarped.envs", "rewarped.envs.dflex", "warp", "warp.sim")
    modules = {name: types.ModuleType(name) for name in names}
    for name, size in {"Cartpole": (5, 1), "Ant": (37, 8), "Humanoid": (76, 21)}.items():
        module = types.ModuleType(f"rewarped.envs.dflex.{name.lower()}")
        kind = type(name, (FakeRewarpedEnv,), {"sizes": size})
        setattr(module, name, partial(kind, early_termination=False) if name == "Cartpole" else kind)
        modules[module.__name__] = module
    return modules
