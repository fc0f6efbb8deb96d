"""A differentiable env whose returns are known by hand, and whose episodes end where a script says."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_pwm import ObservationNormalizer, SHACLoss, make_pwm_actor, make_value_ensemble

A, B, Q, C = 0.9, 0.7, 0.5, 0.1
GOES, TERMINATED, TRUNCATED = 0, 1, 2


class QuadraticEnv(EnvBase):
    """z' = a z + b u,  r = -(q |z|^2 + c |u|^2), with the state kept inside the env, as simulators do.

    ``script`` [N, T] says how step t of each env ends, again and again. Env n restarts at fresh draws of the env's own
    generator, or at ``starts`` [N, 1].
    """

    def __init__(
        self, script=None, *, num_envs=4, size=1, starts=None, requires_grad=True, bound=1.0, dtype=torch.float64
    ):
        script = torch.zeros(num_envs, 1, dtype=torch.int64) if script is None else torch.as_tensor(script)
        super().__init__(batch_size=[len(script)])
        shape, column = (len(script), size), (len(script), 1)
        self.script, self.starts, self.requires_grad, self.kind = script, starts, requires_grad, dtype
        self.observation_spec = Composite(observation=Unbounded(shape, dtype=dtype), shape=self.batch_size)
        self.action_spec = Bounded(-bound, bound, shape, dtype=dtype)
        self.reward_spec = Unbounded(column, dtype=dtype)
        flags = {name: Bounded(0, 1, column, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=self.batch_size)
        self.generator = torch.Generator().manual_seed(0)
        self.state, self.clock = torch.zeros(shape, dtype=dtype), 0

    def _reset(self, tensordict=None):
        rows = torch.ones(len(self.state), 1, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            rows = tensordict["_reset"].view_as(rows)
        fresh = torch.randn(self.state.shape, generator=self.generator, dtype=self.kind)
        self.state = torch.where(rows, fresh if self.starts is None else self.starts, self.state)
        return TensorDict({"observation": self.state}, self.batch_size)

    def _step(self, tensordict):
        z, u = self.state, tensordict["action"]
        z, u = (z, u) if self.requires_grad else (z.detach(), u.detach())
        self.state = A * z + B * u
        end = self.script[:, self.clock % self.script.shape[1], None]
        self.clock += 1
        reward = -(Q * z.square() + C * u.square()).sum(-1, keepdim=True)
        out = {"observation": self.state, "reward": reward, "done": end != GOES}
        out |= {"terminated": end == TERMINATED, "truncated": end == TRUNCATED}
        return TensorDict(out, self.batch_size)

    def truncate_graph(self, tensordict):
        self.state = self.state.detach()
        return tensordict.detach()

    def _set_seed(self, seed):
        self.generator.manual_seed(seed)

    def state_dict(self, *args, **kwargs):
        return {"state": self.state.detach().clone(), "clock": self.clock, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict, strict=True, assign=False):
        self.state, self.clock = state_dict["state"].clone(), state_dict["clock"]
        self.generator.set_state(state_dict["generator"])


def make_shac(**options):
    """A small SHACLoss with normalised observations, in float32."""
    key = "normalized_observation"
    actor, value = make_pwm_actor(2, 2, units=(12,), in_key=key), make_value_ensemble(2, units=(12,), in_key=key)
    return SHACLoss(actor, value, horizon=4, normalizer=ObservationNormalizer(2), **options)


def make_window(num_envs=6):
    """A window of such a loss, with episodes that end inside it."""
    script = torch.randint(0, 3, (num_envs, 4), generator=torch.Generator().manual_seed(4))
    env = QuadraticEnv(script, size=2, dtype=torch.float32)
    return make_shac().rollout(env, env.reset())[0]
