"""Milliseconds per decision: policies side by side in one process and thread, for one env and for several at once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType, set_exploration_type

import torchrl_pwm.runs.configs  # noqa: F401, registers the configuration groups
from benchmarks.learning.groups import Group
from torchrl_pwm._utils.devices import one_thread
from torchrl_pwm.data import make_online_replay
from torchrl_pwm.envs import get_task_set
from torchrl_pwm.modules import ObservationNormalizer, WorldModelPolicy
from torchrl_pwm.runs.policies import load_actor
from torchrl_pwm.runs.pwm_online import make_losses
from torchrl_pwm.runs.saved import read_config
from torchrl_pwm.runs.shac import make_shac_loss
from torchrl_pwm.runs.tdmpc2_offline import load_tdmpc2, model_of_run
from torchrl_pwm.runs.tdmpc2_online import make_model, make_planner
from torchrl_pwm.runs.world_model import load_world_model, world_model_of_run

#: Numbers of envs at once.
ENVS = (1, 8)
_UNTIMED = 3  # first decisions of each policy
Policy = Callable[[TensorDict], Any]


def measure_decisions(group: Group, folder: Path, *, rounds: int = 30) -> dict[str, dict[str, float]]:
    """Median milliseconds of a decision for one env, by method and number of envs at once.

    The policies take turns, so that what else the machine does falls on all of them alike.

    Args:
        group: the group.
        folder: of its runs; those of the first seed and task are loaded.
        rounds: decisions of each.
    """
    make = _offline_policies if group.offline else _online_policies
    with one_thread():
        return _measure(*make(folder), rounds)


def _measure(
    policies: Mapping[str, Callable[[], Policy]], inputs: Callable[[int], TensorDict], rounds: int
) -> dict[str, dict[str, float]]:
    median: dict[str, dict[str, float]] = {name: {} for name in policies}
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        for envs in ENVS:
            # A planner keeps the plans of its envs: one for each number of them.
            made = {name: policy() for name, policy in policies.items()}
            times: dict[str, list[float]] = {name: [] for name in policies}
            for _ in range(rounds + _UNTIMED):
                for name, policy in made.items():
                    td = inputs(envs)
                    start = time.perf_counter()
                    policy(td)
                    times[name].append(time.perf_counter() - start)
            for name, values in times.items():
                median[name][str(envs)] = round(1000 * float(np.median(values[_UNTIMED:])) / envs, 4)
    return median


def _offline_policies(folder: Path) -> tuple[dict[str, Callable[[], Policy]], Callable[[int], TensorDict]]:
    policies: dict[str, Callable[[], Policy]] = {}
    task_set, task = get_task_set("mt80"), 0
    for name in ("pwm", "tdmpc2"):
        summary = next(iter(sorted((folder / name).glob("*/seed-*/summary.json"))), None)
        if summary is None:
            continue
        run = summary.parent
        config: Any = read_config(run)
        task = task_set[config.task[0]].index
        if name == "pwm":
            model = load_world_model(config, world_model_of_run(config, run, config.task[0]))
            policy = WorldModelPolicy(model, load_actor(config, model, run, config.task[0])).eval()
            policies[name] = functools.partial(_same, policy)
        else:
            tdmpc2 = load_tdmpc2(config, model_of_run(config, run), list(config.task)).eval()
            for method, plan in (("tdmpc2", True), ("tdmpc2_prior", False)):
                policies[method] = functools.partial(instantiate, config.planner, tdmpc2, plan=plan)

    def inputs(envs: int) -> TensorDict:
        return _inputs(envs, task_set.observation_dim).set("task", torch.full((envs,), task))

    return policies, inputs


def _online_policies(folder: Path) -> tuple[dict[str, Callable[[], Policy]], Callable[[int], TensorDict]]:
    """Policies of the sizes that were trained, with new weights: they take as long."""
    from benchmarks.learning.methods.ppo import make_ppo
    from benchmarks.learning.methods.sac import make_sac

    policies: dict[str, Callable[[], Policy]] = {}
    size, first = 0, None
    for name in ("pwm", "shac", "tdmpc2", "sac", "ppo"):
        runs = sorted((folder / name).glob("*/seed-*/summary.json"))
        runs = [file for file in runs if first in (None, file.parts[-3])]
        if not runs:
            continue
        first = runs[0].parts[-3]
        config: Any = read_config(runs[0].parent)
        env = instantiate(config.env, num_envs=2)
        size = env.observation_spec["observation"].shape[-1]
        if name == "pwm":
            model, loss, _ = make_losses(config, env, "cpu")
            policies[name] = functools.partial(_same, WorldModelPolicy(model, loss.actor_network).eval())
        elif name == "shac":
            policies[name] = functools.partial(_same, make_shac_loss(config, env).policy.eval())
        elif name == "tdmpc2":
            tdmpc2 = make_model(config, env).eval()
            policies[name] = functools.partial(make_planner, config, tdmpc2, True)
            policies["tdmpc2_prior"] = functools.partial(make_planner, config, tdmpc2, False)
        else:
            normalizer = ObservationNormalizer(size)
            make = make_sac if name == "sac" else make_ppo
            actor = make(config, env, normalizer, make_online_replay(10, slice_len=1)).actor
            policies[name] = functools.partial(_same, TensorDictSequential(normalizer, actor).eval())
        if not env.is_closed:
            env.close()
    return policies, functools.partial(_inputs, size=size)


def _same(policy: Policy) -> Policy:
    return policy


def _inputs(envs: int, size: int) -> TensorDict:
    observation = torch.randn(envs, size)
    return TensorDict({"observation": observation, "is_init": torch.zeros(envs, 1, dtype=torch.bool)}, [envs])
