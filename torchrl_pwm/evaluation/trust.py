"""Trust probe of a world model: predicted beside real rewards, step by step of an open-loop rollout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm._utils.seeds import kept_generators
from torchrl_pwm.envs import WorldModelWrapper, make_task_env
from torchrl_pwm.envs.tasks import TaskSet, get_task_set
from torchrl_pwm.modules import PWMWorldModel

__all__ = ["TrustProbe", "open_loop_rewards", "probe_trust"]

PROBED_STEPS = (1, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class TrustProbe:
    """Errors of the predicted reward along the policy's own real episodes, and the return of these.

    Args:
        errors: predicted minus real reward by imagined step (first step: 1), in the task's units per step.
        absolute_errors: the mean of its size.
        returns: real return of each episode.
        successes: success at the last step of each episode, or None.
    """

    errors: dict[int, float]
    absolute_errors: dict[int, float]
    returns: np.ndarray
    successes: np.ndarray | None

    def metrics(self) -> dict[str, float]:
        """For a logger: ``trust_step1``, ``trust_step4`` and so on."""
        return {f"trust_step{step}": error for step, error in self.errors.items()}


@torch.no_grad()
def open_loop_rewards(world_model: PWMWorldModel, sequences: TensorDictBase) -> Tensor:
    """Rewards [B, T] that the model predicts for real actions from the first observations on, in raw units.

    With a termination head each counts with the probability that the episode has not ended before it.

    Args:
        world_model: the model.
        sequences: [B, T] with ``observation``, ``action`` and, for a multi-task model, ``task``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_pwm import PWMWorldModel
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> batch = TensorDict({"observation": torch.randn(4, 9, 5), "action": torch.zeros(4, 9, 2)}, [4, 9])
        >>> open_loop_rewards(model, batch).shape
        torch.Size([4, 9])
    """
    task = sequences["task"][:, 0] if world_model.num_tasks else None
    latent = world_model.encode_observation(sequences["observation"][:, 0], task)
    context = world_model.task_context(task)
    rewards, alive = [], torch.ones_like(latent[:, :1])
    for action in sequences["action"].unbind(1):
        rewards.append(alive * world_model.decode_reward(world_model.reward_logits(latent, action, context)))
        latent = world_model.next_latent(latent, action, context)
        if world_model.termination:
            alive = alive * torch.sigmoid(-world_model.termination_logits(latent, task))
    return torch.cat(rewards, -1)


def probe_trust(
    policy: TensorDictModuleBase,
    world_model: PWMWorldModel,
    task: str,
    *,
    episodes: int = 2,
    seed: int = 0,
    task_set: str | TaskSet = "mt80",
    steps: Sequence[int] = PROBED_STEPS,
    stride: int = 4,
    env: EnvBase | None = None,
) -> TrustProbe:
    """Runs the policy in the real env and compares the rewards of its episodes with the model's.

    A policy optimised inside a model drifts to where the model promises too much. From every ``stride``-th real state
    the model is rolled out with the actions that the policy really took; predicted minus real reward is near zero
    where the model can be believed and positive where it is exploited.

    Args:
        policy: deterministic where it can be; reads ``latent`` or ``observation``.
        world_model: the frozen model.
        task: task name.
        episodes: real episodes.
        seed: seed of the env.
        task_set: task set of the model.
        steps: imagined steps to report, from 1.
        stride: real steps between two rollouts of the model.
        env: one of the task to play in, of batch [] or [N], which writes ``latent`` and is left open. Default: a new
            one.

    Raises:
        ValueError: for an unknown task, or steps that no episode has.

    Examples:
        >>> from torchrl_pwm import PWMWorldModel, make_pwm_actor
        >>> model = PWMWorldModel(39, 6, latent_dim=16, units=(32,), num_tasks=80, task_dim=8)
        >>> probe = probe_trust(make_pwm_actor(16, 6), model, "mw-reach", episodes=1)
        >>> sorted(probe.metrics())
        ['trust_step1', 'trust_step16', 'trust_step4', 'trust_step8']
    """
    spec = get_task_set(task_set)[task]
    longest = max(steps)
    if min(steps) < 1 or longest > spec.episode_length or episodes < 1:
        raise ValueError(
            f"steps must lie in 1 to {spec.episode_length}, the episode of {task}, and episodes be at least 1, found "
            f"steps={tuple(steps)}, episodes={episodes}"
        )
    played = env if env is not None else _new_env(task, task_set, world_model)
    try:
        # kept, since an env's set_seed seeds torch's global generator too
        with kept_generators(), torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            played.set_seed(seed)
            rounds = range(-(-episodes // max(played.batch_size.numel(), 1)))
            played_rounds = [played.rollout(spec.episode_length, policy) for _ in rounds]
    finally:
        if env is None:
            played.close(raise_if_closed=False)
    rollouts = TensorDict.cat([whole.reshape(-1, spec.episode_length) for whole in played_rounds])[:episodes]
    real = rollouts["next", "reward"].squeeze(-1)
    starts = range(0, spec.episode_length - longest + 1, stride)
    windows = TensorDict.cat([rollouts[:, start : start + longest] for start in starts])
    error = open_loop_rewards(world_model, windows) - windows["next", "reward"].squeeze(-1)
    success = rollouts.get(("next", "success"), None) if spec.score_rule == "success" else None
    return TrustProbe(
        errors={step: float(error[:, step - 1].mean()) for step in steps},
        absolute_errors={step: float(error[:, step - 1].abs().mean()) for step in steps},
        returns=real.sum(1).double().cpu().numpy(),
        successes=None if success is None else success[:, -1, 0].float().cpu().numpy(),
    )


def _new_env(task: str, task_set: str | TaskSet, world_model: PWMWorldModel) -> EnvBase:
    device = next(world_model.parameters()).device
    return TransformedEnv(make_task_env(task, task_set=task_set, device=device), WorldModelWrapper(world_model))
