"""Agent files in the published layout, with the class of moments that the published code pickles."""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager
from pathlib import Path

import torch

from torchrl_pwm import PWMWorldModel, make_pwm_actor, make_value_ensemble

MODULE = "pwm.utils.running_mean_std"


@contextmanager
def published_moments():
    """The class, importable under its published name for as long as a file is written."""

    class RunningMeanStd:
        def __init__(self, shape):
            self.shape = shape
            self.mean, self.var, self.count = torch.zeros(shape), torch.ones(shape), 1e-4

    RunningMeanStd.__module__, RunningMeanStd.__qualname__ = MODULE, "RunningMeanStd"
    names = [MODULE[:end] for end, char in enumerate(MODULE + ".") if char == "."]
    modules = {name: types.ModuleType(name) for name in names}
    modules[MODULE].RunningMeanStd = RunningMeanStd
    sys.modules.update(modules)
    try:
        yield RunningMeanStd
    finally:
        for name in modules:
            del sys.modules[name]


def moments_of(kind, shape, seed):
    draws = torch.Generator().manual_seed(seed)
    moments = kind(shape)
    moments.mean, moments.var = torch.randn(shape, generator=draws), torch.rand(shape, generator=draws) + 0.5
    moments.count = 10.0
    return moments


def published_actor(actor):
    return actor.get_submodule("module.0.module").state_dict()


def save_pwm_agent(
    path: Path, observation: int, action: int, *, obs_rms=False, rew_rms=True, units=(24, 20), **further
):
    """A file of PWM's layout with random networks, moments and Adam states that a few steps made."""
    model = PWMWorldModel(observation, action, latent_dim=16, encoder_units=(16,), units=units)
    torch.nn.init.normal_(model.reward_network[-1].weight)
    actor, critics = make_pwm_actor(16, action, units=(20, 12)), make_value_ensemble(16, units=(20, 12))
    optimizers = {"actor_opt": actor, "critic_opt": critics, "world_model_opt": model}
    states = {name: trained(network) for name, network in optimizers.items()}
    with published_moments() as kind:
        contents = {
            "actor": published_actor(actor),
            "critic": critics.state_dict(),
            "world_model": dict(model.state_dict()),
            "obs_rms": moments_of(kind, (observation,), 1) if obs_rms else None,
            "rew_rms": moments_of(kind, (1,), 2) if rew_rms else None,
            "ret_rms": moments_of(kind, (1,), 3),
            **states,
            **further,
        }
        torch.save(contents, path)
    return model, actor, critics


def save_shac_agent(path: Path, observation: int, action: int):
    """A file of SHAC's layout."""
    actor = make_pwm_actor(observation, action, units=(20, 12), in_key="normalized_observation")
    critics = make_value_ensemble(observation, units=(20, 12), in_key="normalized_observation")
    with published_moments() as kind:
        moments = {"obs_rms": moments_of(kind, (observation,), 1), "ret_rms": moments_of(kind, (1,), 3)}
        torch.save({"actor": published_actor(actor), "critic": critics.state_dict(), **moments}, path)
    return actor, critics


def trained(network):
    optimizer = torch.optim.Adam(network.parameters(), 1e-9)
    for _ in range(3):
        for param in network.parameters():
            param.grad = torch.randn_like(param)
        optimizer.step()
    return optimizer.state_dict()
