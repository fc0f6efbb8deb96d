"""Objects with the documented interfaces of DFlex (PWM's fork) and rewarped, around a physics of two lines."""

from __future__ import annotations

import types
import weakref
from functools import partial
from typing import ClassVar

import numpy as np
import torch


class Tape:
    """What DFlex records of a step for the way back: with what it computed, and so, in a circle, with the graph."""

    alive: ClassVar = weakref.WeakSet()

    def __init__(self):
        self.launches = []
        self.alive.add(self)

    def reset(self):
        self.launches = []


class Simulate(torch.autograd.Function):
    """A step with DFlex's habits: the first way back empties the tape, and without a tape every gradient is zero."""

    @staticmethod
    def forward(ctx, stiffness, state_out, joint_q, joint_act):
        ctx.tape, ctx.stiffness, ctx.sizes = Tape(), stiffness, (joint_q.shape, joint_act.shape)
        state_out.joint_q = _moved(stiffness, joint_q, joint_act)
        ctx.tape.launches.append(state_out.joint_q)
        return state_out.joint_q, state_out.joint_act

    @staticmethod
    def backward(ctx, grad, _):
        (num_envs, _), acts = ctx.sizes
        grad = grad if ctx.tape.launches else torch.zeros_like(grad)
        ctx.tape.reset()
        pushed = 0.3 * ctx.stiffness * grad.sum(-1, keepdim=True)
        return None, None, 0.9 * grad, pushed.expand(num_envs, acts[-1]) / STRENGTH


STRENGTH = 200.0


def _moved(stiffness, joint_q, joint_act):
    return 0.9 * joint_q + stiffness * 0.3 * joint_act.sum(-1, keepdim=True) / STRENGTH


class Integrator:
    """Without gradients the state is changed in place, and so keeps its ``joint_act``; a new one has zeros there."""

    def forward(self, model, state_in, dt, substeps, mass_matrix_freq):
        if FakeDFlexEnv.config.no_grad:
            with torch.no_grad():
                state_in.joint_q = _moved(model.stiffness, state_in.joint_q, state_in.joint_act)
            return state_in
        state_out = model.state()
        Simulate.apply(model.stiffness, state_out, state_in.joint_q, state_in.joint_act)
        return state_out


class FakeDFlexEnv:
    """Resets itself what is done, keeps buffers and changes them in place, draws from torch's global generator.

    The reward is that of the observation before the step and of the action. Gradients depend on ``config.no_grad`` at
    each step. The last of its observation, where the task has them, are ``joint_act`` of the state.
    """

    config = types.SimpleNamespace(no_grad=False)
    sizes, observed_acts = (5, 1), 0

    def __init__(
        self,
        num_envs=4096,
        episode_length=240,
        no_grad=True,
        render=False,
        stochastic_init=False,
        MM_caching_frequency=1,
        early_termination=True,
        action_penalty=0.0,
        device="cuda:0",
        up_rew_scale=0.1,
        joint_vel_obs_scaling=0.1,
        nan_state_fix=False,
        heading_rew_scale=1.0,
        heigh_rew_scale=1.0,
        height_rew_scale=1.0,
        angle_rew_scale=1.0,
        termination_height=0.0,
        termination_angle=0.0,
        termination_tolerance=0.0,
        termination_height_tolerance=0.0,
        termination_angle_tolerance=0.0,
    ):
        assert isinstance(device, str)
        self.settings = {key: value for key, value in locals().items() if key != "self"}
        self.num_envs, self.episode_length, self.no_grad, self.device = num_envs, episode_length, no_grad, device
        self.num_obs, self.num_acts = self.sizes
        self.num_observations, self.num_actions = self.sizes
        self.early_termination, self.action_penalty = early_termination, action_penalty
        self.stiffness = 1 + torch.rand(1).item()  # drawn while building
        self.config.no_grad = no_grad
        self.limit = np.inf if not early_termination else 3.0
        self.progress_buf = torch.zeros(num_envs, dtype=torch.long)
        self.obs_buf = torch.zeros(num_envs, self.num_obs)
        self.rew_buf = torch.zeros(num_envs)
        self.model, self.integrator = types.SimpleNamespace(stiffness=self.stiffness, state=self._new), Integrator()
        self.state = self._new()
        self.resets = []

    def _new(self):
        joints = torch.zeros(self.num_envs, self.num_obs - self.observed_acts)
        return types.SimpleNamespace(joint_q=joints, joint_act=torch.zeros(self.num_envs, self.num_actions))

    def _observe(self):
        return torch.cat([self.state.joint_q, self.state.joint_act[:, : self.observed_acts] / STRENGTH], -1)

    def reset(self, env_ids=None, grads=False, force_reset=False):
        if grads:
            return self.initialize_trajectory()
        env_ids = torch.arange(self.num_envs) if env_ids is None else env_ids
        self.resets.append(env_ids.tolist())
        q = self.state.joint_q.clone()
        q[env_ids] = torch.rand(len(env_ids), q.shape[-1]) - 0.5
        self.state.joint_q = q
        self.state.joint_act = self.state.joint_act.clone()
        self.state.joint_act[env_ids] = 0.0
        self.progress_buf[env_ids] = 0
        self.obs_buf = self._observe()
        return self.obs_buf

    def step(self, actions, play=False):
        actions = actions.clip(-1, 1)
        self.state.joint_act = STRENGTH * actions
        self.state = self.integrator.forward(self.model, self.state, 1 / 60, 16, 16)
        self.rew_buf = -self.obs_buf.square().sum(-1) + self.action_penalty * actions.square().sum(-1)
        self.progress_buf += 1
        self.obs_buf = self._observe()
        truncation = self.progress_buf >= self.episode_length
        termination = self.obs_buf.detach().abs().amax(-1) > self.limit
        extras = {"obs_before_reset": self.obs_buf.clone(), "termination": termination, "truncation": truncation}
        done = truncation | termination
        if done.any():
            self.reset(done.nonzero().flatten())
        return self.obs_buf, self.rew_buf, done, extras

    def initialize_trajectory(self):
        self.clear_grad()
        self.obs_buf = self._observe()
        return self.obs_buf

    def clear_grad(self, checkpoint=None):
        checkpoint = self.get_checkpoint() if checkpoint is None else checkpoint
        self.state = self._new()
        self.state.joint_q, self.state.joint_act = (
            checkpoint[key].detach().clone() for key in ("joint_q", "joint_act")
        )
        self.progress_buf = checkpoint["progress_buf"].clone()

    def get_checkpoint(self):
        state = {"joint_q": self.state.joint_q.clone(), "joint_act": self.state.joint_act.clone()}
        return {**state, "progress_buf": self.progress_buf.clone()}


class FakeRewarpedEnv(FakeDFlexEnv):
    """Builds its buffers at the first reset; no terminal observation where nothing was reset; other flag names.

    Without early termination, ``terminated`` is a copy of ``truncated``, and only all envs can be reset. The reset of
    some envs cuts the graph of all. The last actions are observed in both modes.
    """

    def __init__(self, num_envs=64, no_grad=False, early_termination=True, **settings):
        super().__init__(num_envs, no_grad=no_grad, early_termination=early_termination, **settings)
        self.initialized = False
        self.actions = torch.zeros(num_envs, self.num_actions)
        del self.num_acts, self.progress_buf
        self.num_act = self.num_actions

    def reset(self, env_ids=None, clear_grad=False):
        if not self.initialized:
            self.progress_buf = torch.zeros(self.num_envs, dtype=torch.int)
            self.initialized = True
        assert self.early_termination or env_ids is None or len(env_ids) == self.num_envs
        self.state.joint_q, self.actions = self.state.joint_q.detach(), self.actions.detach().clone()
        self.actions[slice(None) if env_ids is None else env_ids] = 0.0
        return super().reset(env_ids)

    def _observe(self):
        return torch.cat([self.state.joint_q, self.actions[:, : self.observed_acts]], -1)

    def step(self, actions):
        self.config.no_grad, self.actions = self.no_grad, actions.clip(-1, 1)
        *rest, extras = super().step(actions)
        terminated, truncated = extras["termination"], extras["truncation"]
        none = not (terminated | truncated).any()
        before = None if none else extras["obs_before_reset"]
        terminated = terminated if self.early_termination else truncated.clone()
        return *rest, {"obs_before_reset": before, "terminated": terminated, "truncated": truncated}

    def get_checkpoint(self, detach=False):
        return {"state": {"joint_q": self.state.joint_q.clone()}, "control": {}}

    def clear_grad(self, checkpoint=None):
        checkpoint = self.get_checkpoint() if checkpoint is None else checkpoint
        self.state.joint_q = checkpoint["state"]["joint_q"].detach().clone()
        self.actions = self.actions.detach()


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
        acts = size[1] if name in ("Ant", "Anymal", "Humanoid") else 0
        setattr(home, f"{name}Env", type(f"{name}Env", (FakeDFlexEnv,), {"sizes": size, "observed_acts": acts}))
    return {"dflex": root, "dflex.envs": envs, "dflex.envs.double_pendulum": pendulum}


def rewarped_modules():
    """Modules of a stand-in ``rewarped`` and of the ``warp`` that it needs, by name."""
    names = ("rewarped", "rewarped.envs", "rewarped.envs.dflex", "warp", "warp.sim")
    modules = {name: types.ModuleType(name) for name in names}
    for name, size in {"Cartpole": (5, 1), "Ant": (37, 8), "Humanoid": (76, 21)}.items():
        module = types.ModuleType(f"rewarped.envs.dflex.{name.lower()}")
        acts = 0 if name == "Cartpole" else size[1]
        kind = type(name, (FakeRewarpedEnv,), {"sizes": size, "observed_acts": acts})
        setattr(module, name, partial(kind, early_termination=False) if name == "Cartpole" else kind)
        modules[module.__name__] = module
    return modules
