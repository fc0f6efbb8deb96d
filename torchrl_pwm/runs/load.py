"""Loading of what a finished run left behind: its policy, and steps that it makes."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from torchrl_pwm._utils.tensor_files import read_tensors
from torchrl_pwm.data import record_steps
from torchrl_pwm.modules import WorldModelPolicy
from torchrl_pwm.runs.pwm_online import make_losses
from torchrl_pwm.runs.shac import make_shac_loss


def load_policy(folder: str | os.PathLike[str]) -> tuple[nn.Module, DictConfig]:
    """The policy of a finished run of SHAC or of online PWM, on the CPU, and the run's configuration.

    Raises:
        FileNotFoundError: if no run in ``folder`` has ended with a policy.
    """
    folder = Path(folder)
    if not (folder / "policy.pt").exists():
        raise FileNotFoundError(
            f"No policy in {folder}: expected the folder of a finished run of `torchrl-pwm shac`, simulator or online, "
            "with policy.pt."
        )
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    env = instantiate(config.env)
    weights = read_tensors(folder / "policy.pt", what="policy")
    try:
        if not (folder / "world_model.pt").exists():
            policy = make_shac_loss(config, env).policy
            policy.load_state_dict(weights)
            return policy, config
        model, loss, _ = make_losses(config, env, "cpu")
    finally:
        if not env.is_closed:
            env.close()
    model.load_state_dict(read_tensors(folder / "world_model.pt", what="world model"))
    loss.actor_network.load_state_dict(weights)
    return WorldModelPolicy(model, loss.actor_network), config


def record_run(config: DictConfig) -> str:
    """Records steps of a finished run's policy as ``config`` says, and returns what was recorded, in words.

    Raises:
        FileExistsError: if the folder ``config.out`` is there already.
        FileNotFoundError: if no run in ``config.run`` has ended with a policy.
    """
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"{out} exists: choose another folder with out=...")
    policy, run = load_policy(Path(config.run))
    env = instantiate(run.env, num_envs=config.rows, seed=config.seed, **config.env)
    steps = record_steps(policy, env, config.steps, noise=config.noise, seed=config.seed, progress=True)
    steps.memmap(str(out))
    return f"{steps.numel():,} steps, mean reward {float(steps['next', 'reward'].mean()):.3f}\n{out}"
