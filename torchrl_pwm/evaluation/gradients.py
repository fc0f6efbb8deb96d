"""Agreement of the policy gradient through a world model with finite differences through the simulator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm.envs.simulators.state import has_state, load_env, save_env, whole_episodes
from torchrl_pwm.evaluation.open_loop import PROBED_STEPS
from torchrl_pwm.modules import PWMWorldModel

__all__ = ["gradient_agreement"]


def gradient_agreement(
    policy: TensorDictModuleBase,
    world_model: PWMWorldModel,
    env: EnvBase,
    *,
    steps: Sequence[int] = PROBED_STEPS,
    before: int = 0,
    directions: int = 32,
    size: float = 1e-3,
    gamma: float = 0.99,
    detach_latent: bool = True,
    seed: int = 0,
) -> dict[int, float]:
    """Cosine between the policy gradient through the model over H steps and that through the simulator.

    Both are of the discounted reward of H steps under the mean action, mean over the env's states, and are compared by
    their derivatives along random directions of the policy's weights: in the simulator by central differences, which
    restores it before each. It costs 2 x directions x max(H) steps of the env, and is to be called on demand.

    Args:
        policy: reads ``latent``.
        world_model: the model.
        env: of batch [N], which writes ``latent``; a :class:`~torchrl_pwm.envs.simulators.SimulatorEnv` is restored by
            its state, any other by its seed and the actions again, from which it must be deterministic.
        steps: numbers H of steps.
        before: steps of the policy before the gradient is taken; states whose episode ends by then or within the
            longest H do not count.
        directions: random directions; with 32 the cosine is known to about 0.1 where it is 0.8.
        size: of a step in a direction, in units of the norm of the policy's weights.
        gamma: discount.
        detach_latent: whether the model's gradient leaves out how the state changes later actions, as
            :class:`~torchrl_pwm.PWMLoss` does. The simulator's never does.
        seed: of env and directions.

    Returns:
        The cosine by H.

    Raises:
        ValueError: if no state has an episode that is long enough.
    """
    parameters = [p for p in policy.parameters() if p.requires_grad]
    longest = max(steps)
    with kept_generators(), set_exploration_type(ExplorationType.DETERMINISTIC):
        start = _Start(env, policy, before, seed)
        torch.manual_seed(seed)
        scale = size * sum(float(p.detach().square().sum()) for p in parameters) ** 0.5
        lines = [_unit([torch.randn_like(p) for p in parameters]) for _ in range(directions)]
        pairs = []
        for line in lines:
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad(), _moved(parameters, line, sign * scale):
                    ends.append(_simulated(start, policy, longest))
            pairs.append(ends)
        goes_on = start.goes_on & torch.stack([ended for ends in pairs for _, ended in ends]).all(0)
        if not bool(goes_on.any()):
            raise ValueError(
                f"no episode of {type(env).__name__} lasts {before + longest} steps: lower before or steps"
            )
        discount = gamma ** torch.arange(longest)
        real = torch.stack([(up - down)[goes_on].mean(0) for (up, _), (down, _) in pairs]).cpu() / (2 * scale)
        agreement = {}
        imagined = _imagined(policy, world_model, start.state[goes_on], longest, detach_latent).mean(0)
        for horizon in steps:
            total = (imagined[:horizon] * discount[:horizon].to(imagined)).sum()
            gradient = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
            along = torch.stack(
                [
                    sum(((g * d).sum() for g, d in zip(gradient, line) if g is not None), torch.zeros(()))
                    for line in lines
                ]
            )
            wanted = (real[:, :horizon] * discount[:horizon]).sum(1)
            agreement[horizon] = float(torch.cosine_similarity(along.cpu().double(), wanted.double(), dim=0))
    return agreement


class _Start:
    """States of an env, to which it can be brought back."""

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, before: int, seed: int) -> None:
        self.env, self.seed, self.actions = env, seed, []
        with torch.no_grad():
            state = self._reset()
            self.goes_on = torch.ones(env.batch_size, dtype=torch.bool, device=state.device)
            for _ in range(before):
                state = policy(state)
                self.actions.append(state["action"].clone())
                state = self._step(state)
        self.state = state.clone()
        self.saved = save_env(env, state) if has_state(env) else None

    def restore(self) -> TensorDictBase:
        """The env's TensorDict at these states."""
        if self.saved is not None:
            state = load_env(self.env, self.saved)
            assert state is not None
            return state
        state = self._reset()
        for action in self.actions:
            state = self._step(state.set("action", action))
        return state

    def _reset(self) -> TensorDictBase:
        self.env.set_seed(self.seed)
        with whole_episodes(self.env):
            return self.env.reset()

    def _step(self, state: TensorDictBase) -> TensorDictBase:
        step, state = self.env.step_and_maybe_reset(state)
        self.goes_on = self.goes_on & ~step["next", "done"].squeeze(-1)
        return state


def _simulated(start: _Start, policy: TensorDictModuleBase, steps: int) -> tuple[Tensor, Tensor]:
    """Real rewards [N, H] from the states on, float64, and which episodes [N] lasted so long."""
    state, rewards = start.restore(), []
    goes_on = torch.ones_like(start.goes_on)
    for _ in range(steps):
        step, state = start.env.step_and_maybe_reset(policy(state))
        rewards.append(step["next", "reward"].squeeze(-1).double())
        # the reward of a last step counts
        goes_on = goes_on & (~step["next", "done"].squeeze(-1) | (len(rewards) == steps))
    return torch.stack(rewards, -1), goes_on


def _imagined(
    policy: TensorDictModuleBase, model: PWMWorldModel, states: TensorDictBase, steps: int, detach_latent: bool
) -> Tensor:
    """Rewards [N, H] inside the model, in raw units, with their graph."""
    task: Any = states["task"] if model.num_tasks else None
    latent, context, rewards = model.encode_observation(states["observation"], task), model.task_context(task), []
    for _ in range(steps):
        state = TensorDict({"latent": latent.detach() if detach_latent else latent}, states.batch_size)
        action = policy(state if task is None else state.set("task", task))["action"]
        rewards.append(model.decode_reward(model.reward_logits(latent, action, context)).squeeze(-1))
        latent = model.next_latent(latent, action, context)
    return torch.stack(rewards, -1)


def _unit(line: list[Tensor]) -> list[Tensor]:
    norm = sum(float(part.square().sum()) for part in line) ** 0.5
    return [part / norm for part in line]


@contextmanager
def _moved(parameters: list[Any], line: list[Tensor], size: float) -> Iterator[None]:
    """The parameters moved along a direction, and afterwards as they were, bit for bit."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter, part in zip(parameters, line):
            parameter.data.add_(part, alpha=size)
        yield
    finally:
        for parameter, value in zip(parameters, before):
            parameter.data.copy_(value)
