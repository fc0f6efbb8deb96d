"""Every module, loss and planner takes plain tensors in place of a TensorDict, as TorchRL's own do."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm import (
    FirstOrderLoss,
    ObservationNormalizer,
    PWMLoss,
    PWMWorldModel,
    PWMWorldModelLoss,
    SHACLoss,
    TDMPC2Loss,
    TDMPC2Model,
    TDMPC2Planner,
    WorldModelPolicy,
    WorldModelWrapper,
    make_pwm_actor,
    make_value_ensemble,
)
from torchrl_pwm.modules import TrainedPolicy

SEARCH = {"num_samples": 32, "num_policy_rollouts": 4, "num_elites": 8, "iterations": 2}
NESTED = ("PWMWorldModelLoss", "TDMPC2Loss", "FirstOrderLoss", "SHACLoss")  # these read sequences [B, T]


def model(**tasks):
    return PWMWorldModel(5, 2, latent_dim=16, units=(32, 32), num_bins=11, **tasks)


def networks(key="latent", size=16):
    return make_pwm_actor(size, 2, in_key=key), make_value_ensemble(size, in_key=key)


def several():
    return model(num_tasks=3, task_dim=4)


MODULES = {
    "WorldModelPolicy": lambda: WorldModelPolicy(model(), networks()[0]),
    "WorldModelPolicy of tasks": lambda: WorldModelPolicy(several(), networks()[0]),
    "TrainedPolicy": lambda: TrainedPolicy(networks("observation", 5)[0], observation_dim=5, action_dim=2),
    "TDMPC2Model": lambda: TDMPC2Model(model()),
    "TDMPC2Model of tasks": lambda: TDMPC2Model(several()),
    "TDMPC2Planner": lambda: TDMPC2Planner(TDMPC2Model(model()), **SEARCH),
    "TDMPC2Planner of tasks": lambda: TDMPC2Planner(TDMPC2Model(several()), **SEARCH),
    "TDMPC2Planner without plans": lambda: TDMPC2Planner(TDMPC2Model(model()), plan=False),
    "WorldModelWrapper": lambda: WorldModelWrapper(model()),
    "WorldModelWrapper of tasks": lambda: WorldModelWrapper(several()),
    "PWMWorldModel": model,
    "PWMWorldModel of tasks": several,
    "ObservationNormalizer": lambda: ObservationNormalizer(5),
    "make_pwm_actor": lambda: networks()[0],
    "make_value_ensemble": lambda: networks()[1],
    "PWMLoss": lambda: PWMLoss(*networks(), model(), horizon=3),
    "PWMLoss of tasks": lambda: PWMLoss(*networks(), several(), horizon=3),
    "PWMWorldModelLoss": lambda: PWMWorldModelLoss(model()),
    "TDMPC2Loss": lambda: TDMPC2Loss(TDMPC2Model(model())),
    "FirstOrderLoss": lambda: FirstOrderLoss(*networks()),
    "SHACLoss": lambda: SHACLoss(*networks("observation", 5), horizon=3),
}


def inputs(name, keys):
    """What a module reads, as a TensorDict."""
    batch = (4, 3) if name.split()[0] in NESTED else (4,)
    sizes = {"observation": 5, "action": 2, "latent": 16, "reward": 1, "done": 1, "terminated": 1, "is_init": 1}
    td = TensorDict({}, batch)
    for key in keys:
        leaf = key[-1] if isinstance(key, tuple) else key
        if leaf == "task":
            value = torch.zeros(batch, dtype=torch.int64)
        elif leaf in ("done", "terminated", "is_init"):
            value = torch.full((*batch, 1), leaf == "is_init")
        else:
            value = torch.rand(*batch, sizes[leaf], requires_grad=leaf == "reward" and name != "TDMPC2Loss")
        td.set(key, value)
    return td


@pytest.mark.parametrize("name", MODULES)
def test_plain_tensors_give_what_a_tensordict_gives(name):
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    td = inputs(name, module.in_keys)
    plain = {"_".join(key) if isinstance(key, tuple) else key: td.get(key) for key in module.in_keys}
    found = []
    for call in (lambda: module(td.clone()), lambda: module(**plain)):
        torch.manual_seed(1)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            found.append(call())
    expected = tuple(found[0].get(key) for key in module.out_keys)
    torch.testing.assert_close(found[1] if isinstance(found[1], tuple) else (found[1],), expected)
