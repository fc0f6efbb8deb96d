"""Recording of steps that a finished run's policy makes."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_pwm._utils.files import staged_folder
from torchrl_pwm.data import record_steps
from torchrl_pwm.runs.load import load_policy
from torchrl_pwm.runs.saved import named_targets, read_config


def record_run(config: DictConfig) -> str:
    """Records steps of a finished run's policy as ``config`` says, and returns what was recorded, in words.

    Raises:
        FileExistsError: if the folder ``config.out`` is there already.
        FileNotFoundError: if no run in ``config.run`` has ended with a policy.
        ValueError: for a run of many tasks, or one of recorded data without an env.
    """
    out = Path(config.out)
    if out.exists():
        raise FileExistsError(f"{out} exists: choose another folder with out=...")
    targets = named_targets(config)
    run = read_config(config.run, targets=targets)
    if "env" not in run:
        raise ValueError(f"record takes a run in one env, found one of many tasks in {config.run}.")
    if run.env.get("task") is None and config.env.get("task") is None:
        raise ValueError(
            f"the run in {config.run} learnt from recorded data, without an env: name one with +env.task=ID"
        )
    policy = load_policy(config.run, "cpu", targets=sorted(targets))
    env = instantiate(run.env, num_envs=config.rows, seed=config.seed, **config.env)
    if "is_init" in policy.in_keys:
        env = TransformedEnv(env, InitTracker(), auto_unwrap=False)
    steps = record_steps(policy, env, config.steps, noise=config.noise, seed=config.seed, progress=config.progress)
    with staged_folder(out) as stage:
        steps.memmap(str(stage))
    return f"{steps.numel():,} steps, mean reward {float(steps['next', 'reward'].mean()):.3f}\n{out}"
