"""Training that goes on from an agent: its running moments and Adam states, put where ours are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrl_pwm.modules import PWMAgent
from torchrl_pwm.modules.agent_files import AdamState
from torchrl_pwm.objectives import FirstOrderLoss
from torchrl_pwm.trainers.steppers import FirstOrderOptimizationStepper, WorldModelOptimizationStepper

__all__ = ["load_agent"]


def load_agent(
    agent: PWMAgent,
    loss_module: FirstOrderLoss,
    stepper: FirstOrderOptimizationStepper | None = None,
    model_stepper: WorldModelOptimizationStepper | None = None,
) -> list[str]:
    """Puts the return scale and the Adam states of an agent where training goes on from them.

    The networks themselves are the agent's if the objectives were built with them. Learning rates are the steppers'
    own: those in a published file are the ones at the end of its run.

    Args:
        agent (PWMAgent): of :meth:`PWMAgent.from_pwm <torchrl_pwm.PWMAgent.from_pwm>`.
        loss_module (FirstOrderLoss): gets the running moments of the returns.
        stepper (FirstOrderOptimizationStepper, optional): gets the Adam states of actor and critics.
        model_stepper (WorldModelOptimizationStepper, optional): gets that of the world model.

    Returns:
        Names of the optimisers that were given a state: of ``"actor"``, ``"critic"`` and ``"world_model"``.

    Raises:
        ValueError: if a state does not fit the parameters.

    Examples:
        >>> from torchrl_pwm import PWMLoss, PWMWorldModel, make_pwm_actor, make_value_ensemble
        >>> from torchrl_pwm.trainers import PWMOptimizationStepper
        >>> model = PWMWorldModel(5, 2, latent_dim=16, units=(32, 32))
        >>> agent = PWMAgent(model, make_pwm_actor(16, 2), make_value_ensemble(16))  # or PWMAgent.from_pwm(file)
        >>> loss = PWMLoss(agent.actor, agent.critics, agent.world_model)
        >>> load_agent(agent, loss, PWMOptimizationStepper(loss))
        []
    """
    if agent.return_moments is not None:
        loss_module.return_moments.load_state_dict(agent.return_moments.state_dict())
    places: list[tuple[str, torch.optim.Optimizer, dict[str, Tensor]]] = []
    if stepper is not None:
        actor, critics = loss_module.actor_network_params, loss_module.value_network_params
        places.append(("actor", stepper.actor_optimizer, _by_name(actor)))
        places.append(("critic", stepper.critic_optimizer, _by_name(critics)))
    if model_stepper is not None:
        named: dict[str, Tensor] = dict(model_stepper.loss_module.world_model.named_parameters())
        places.append(("world_model", model_stepper.optimizer, named))
    loaded = []
    for name, optimizer, parameters in places:
        if states := agent.optimizers.get(name):
            _load_adam(name, optimizer, parameters, states)
            loaded.append(name)
    return loaded


def _by_name(params: Any) -> dict[str, Tensor]:
    """Parameters of a loss by their name in the published file, which is how it ends in the network's own."""
    flat = {".".join(key) if isinstance(key, tuple) else key: value for key, value in params.items(True, True)}
    return {name.removeprefix("module.0.module."): value for name, value in flat.items()}


def _load_adam(
    name: str, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], states: Mapping[str, AdamState]
) -> None:
    given = [param for group in optimizer.param_groups for param in group["params"]]
    index = {id(param): number for number, param in enumerate(given)}
    state = {}
    for key, kept in states.items():
        parameter = parameters.get(key)
        if parameter is None or id(parameter) not in index or parameter.shape != kept.exp_avg.shape:
            raise ValueError(
                f"The Adam state of the agent's {name} is of other networks than those that are trained: {key} has the "
                f"shape {tuple(kept.exp_avg.shape)}, found {None if parameter is None else tuple(parameter.shape)}."
            )
        state[index[id(parameter)]] = {
            "step": kept.step.clone().float(),
            "exp_avg": kept.exp_avg.clone(),
            "exp_avg_sq": kept.exp_avg_sq.clone(),
        }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
