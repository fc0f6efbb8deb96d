"""Honest probe of a policy that was optimised inside a world model: does it exploit the model's errors?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase, pad_sequence
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_pwm.envs.gymnasium_env import time_limit
from torchrl_pwm.envs.tasks import TaskSet, get_task_set
from torchrl_pwm.evaluation.open_loop import (
    PROBED_STEPS,
    ObservationReader,
    counting_steps,
    open_loop_errors,
    open_loop_rewards,
)
from torchrl_pwm.evaluation.representation import latent_metrics
from torchrl_pwm.evaluation.results import EvaluationResult
from torchrl_pwm.evaluation.rollouts import evaluate_policy
from torchrl_pwm.evaluation.value_gaps import FAINT, ValueGap, value_gap
from torchrl_pwm.modules import PWMWorldModel, WorldModelPolicy
from torchrl_pwm.modules.actor_critic import gaussian_head
from torchrl_pwm.modules.frozen import frozen
from torchrl_pwm.modules.two_hot import RewardSpace

__all__ = ["PROBED_STEPS", "TrustProbe", "imagined_episodes", "open_loop_rewards", "probe_trust", "trust_line"]

_FAR = 0.25  # of the larger one: by so much must what is promised exceed what is earned
_NEXT = ("observation", "latent", "reward", "done", "terminated")
_READ = ("observation", "latent", "action", "task", *(("next", name) for name in _NEXT))


@dataclasses.dataclass(frozen=True)
class TrustProbe:
    """What whole real episodes of a policy say of its model and its critics; see :func:`probe_trust`.

    Args:
        result: of the real episodes.
        own: errors of the model from the states of these episodes on, with the actions that the policy took: those of
            :func:`~torchrl_pwm.evaluation.open_loop.open_loop_errors`.
        data: the same from recorded states on, if some were given.
        observation_explained: share of the observations' variance that ``observation_error`` sees; None without it.
        imagined: return of a whole episode by the model, from the start of each real one; None for a policy that reads
            no latent.
        gap: V - G of the real episodes; None without critics.
        imagined_gap: the same of the imagined ones: how far the critics are from what the model itself pays.
        latents: spread of the latents along these episodes, and how well the model's own decoder reads them; see
            :func:`~torchrl_pwm.evaluation.representation`, which measures more.
        peak: largest size of a reward in these episodes and the data.
    """

    result: EvaluationResult
    own: Mapping[str, Mapping[int, float]]
    data: Mapping[str, Mapping[int, float]] | None
    observation_explained: float | None
    imagined: np.ndarray | None
    gap: ValueGap | None
    imagined_gap: ValueGap | None
    latents: Mapping[str, float]
    peak: float

    @property
    def returns(self) -> np.ndarray:
        """Real return of each episode."""
        return self.result.returns

    @property
    def successes(self) -> np.ndarray | None:
        """Success at the last step of each episode, where the env tells it."""
        return self.result.successes

    @property
    def errors(self) -> Mapping[int, float]:
        """Predicted minus real reward on the policy's own path by imagined step, in raw units per step."""
        return self.own["error"]

    @property
    def absolute_errors(self) -> Mapping[int, float]:
        """The mean of its size."""
        return self.own["absolute_error"]

    @property
    def imagined_return(self) -> float | None:
        """Mean return of the imagined episodes."""
        return None if self.imagined is None else float(self.imagined.mean())

    @property
    def exploited(self) -> bool:
        """Whether there is a sign of exploitation, in either of two figures; False is not its absence.

        The imagined return exceeds the real one, or V - G in reality V - G in imagination, by a quarter of the larger
        of what is promised and what was earned. Critics that have not settled are wrong in imagination as well, which
        is no fault of the model. Differences below a hundredth of the largest reward in each step do not count.
        """
        faint = FAINT * (self.peak or 1.0) * float(self.result.lengths.mean())
        promised, real, gap = self.imagined_return, self.result.return_mean, self.gap
        if promised is not None and promised - real > max(_FAR * max(abs(promised), abs(real)), faint):
            return True
        if gap is None or self.imagined_gap is None:
            return False
        return gap.closed - max(self.imagined_gap.closed, 0.0) > max(_FAR * max(gap.value, gap.earned), gap.faint)

    @property
    def line(self) -> str:
        """One line for a log or a report."""
        gap = None if self.gap is None else self.gap.closed
        return trust_line(self.exploited, self.imagined_return, self.result.return_mean, gap)

    def metrics(self) -> dict[str, float]:
        """For a logger: ``predicted_return``, ``trust_step1`` and so on (reward), ``dynamics_step1`` and so on
        (observations), the same on data with ``data_`` in front, ``value_gap``, ``value_gap_open``,
        ``value_gap_imagined``, ``latent_spread``, ``exploited``.
        """
        found = {**self.latents, **{f"trust_step{step}": error for step, error in self.errors.items()}}
        for prefix, errors in (("", self.own), ("data_", self.data or {})):
            found |= {f"{prefix}dynamics_step{step}": e for step, e in errors.get("observation_error", {}).items()}
        if self.data is not None:
            found |= {f"data_trust_step{step}": error for step, error in self.data["error"].items()}
        if self.observation_explained is not None:
            found["dynamics_explained"] = self.observation_explained
        if self.imagined_return is not None:
            found["predicted_return"] = self.imagined_return
        if self.gap is not None:
            found |= {"value_gap": self.gap.closed, "value_gap_open": self.gap.open}
        if self.imagined_gap is not None:
            found["value_gap_imagined"] = self.imagined_gap.closed
        return {**found, "exploited": float(self.exploited)}

    def record(self) -> dict[str, Any]:
        """Plain numbers for a file, with the line."""
        return {
            "exploited": self.exploited,
            "line": self.line,
            "imagined_return": self.imagined_return,
            "real_return": self.result.return_mean,
            "value_gap": None if self.gap is None else dataclasses.asdict(self.gap),
            "value_gap_imagined": None if self.imagined_gap is None else dataclasses.asdict(self.imagined_gap),
            "observation_explained": self.observation_explained,
            **self.latents,
            "own": _by_name(self.own),
            "data": None if self.data is None else _by_name(self.data),
        }


def _by_name(errors: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
    shown = ("error", "absolute_error", "observation_error")
    return {name: {str(step): error for step, error in errors[name].items()} for name in shown if name in errors}


def trust_line(exploited: bool, imagined: float | None, real: float, gap: float | None) -> str:
    """What is said of a policy in one line.

    Examples:
        >>> trust_line(True, 852.3, 401.0, 24.31)
        'exploits its model: imagined 852.3, real 401, V - G +24.3'
        >>> trust_line(False, None, 12.0, None)
        'no sign of exploitation: real 12'
    """
    figures = [f"real {real:.4g}"]
    if imagined is not None:
        figures.insert(0, f"imagined {imagined:.4g}")
    if gap is not None:
        figures.append(f"V - G {gap:+.3g}")
    return f"{'exploits its model' if exploited else 'no sign of exploitation'}: {', '.join(figures)}"


def probe_trust(
    policy: TensorDictModuleBase,
    world_model: PWMWorldModel,
    env_or_task: str | EnvBase,
    value_network: nn.Module | None = None,
    *,
    episodes: int = 2,
    seed: int = 0,
    task_set: str | TaskSet = "mt80",
    steps: Sequence[int] = PROBED_STEPS,
    stride: int = 4,
    gamma: float = 0.99,
    reward_space: RewardSpace = "symlog",
    reward_scale: float = 1.0,
    data: TensorDictBase | None = None,
    mask_actions: bool = False,
) -> TrustProbe:
    """Runs the policy in the real env and compares these episodes with what model and critics promise.

    A policy optimised inside a model drifts to where the model promises too much. No single figure shows it:

    - whole imagined episodes from the real start states, beside the real ones. Far above them is exploitation; below
      is not its absence, since an open loop loses an unstable balance and stops earning there.
    - V - G, what the critics promise at real states minus what was earned from there on, closed where a time limit cuts
      the episode off; see :class:`~torchrl_pwm.evaluation.value_gaps.ValueGap`.
    - errors of the model by imagined step from every ``stride``-th real state on, with the actions that the policy
      really took: of the reward, and of the observation in units of its standard deviation, beside those on data.

    Args:
        policy: deterministic where it can be; reads ``latent`` or ``observation``.
        world_model: the frozen model.
        env_or_task: an env, which is left open, or the name of a task, see :func:`~torchrl_pwm.evaluate_policy`.
        value_network: the critics of this policy. Default: no V - G.
        episodes: real episodes.
        seed: seed of the env.
        task_set: task set of the model, for the name of a task.
        steps: imagined steps to report, from 1.
        stride: real steps between two rollouts of the model.
        gamma, reward_space, reward_scale, mask_actions: of the loss that trained policy and critics.
        data: recorded sequences [B, T] that neither model nor policy should find surprising, at best held out:
            ``observation``, ``action``, ``("next", "observation")``, ``("next", "reward")`` and ``task`` as the model
            reads them.

    Raises:
        ValueError: for an unknown task, or steps that no episode has.

    Examples:
        >>> from torchrl_pwm import PWMWorldModel, make_pwm_actor
        >>> model = PWMWorldModel(39, 6, latent_dim=16, units=(32,), num_tasks=80, task_dim=8)
        >>> probe = probe_trust(make_pwm_actor(16, 6), model, "mw-reach", episodes=1)
        >>> sorted(name for name in probe.metrics() if name.startswith("trust"))
        ['trust_step1', 'trust_step16', 'trust_step4', 'trust_step8']
    """
    length = get_task_set(task_set)[env_or_task].episode_length if isinstance(env_or_task, str) else None
    if min(steps) < 1 or episodes < 1 or (length is not None and max(steps) > length):
        raise ValueError(
            f"steps must lie in 1 to {length or 'the length of an episode'}, and episodes be at least 1, found "
            f"steps={tuple(steps)}, episodes={episodes}"
        )
    options = {"task_set": task_set} if isinstance(env_or_task, str) else {}
    result, whole = _play(policy, env_or_task, episodes, seed=seed, world_model=world_model, **options)
    whole = whole.to(next(world_model.parameters()).device)
    longest = max(step for step in steps if step <= whole.shape[1])
    windows = TensorDict.cat([whole[:, k : k + longest] for k in range(0, whole.shape[1] - longest + 1, stride)])
    windows, data = windows[windows["collector", "mask"][:, 0]], None if data is None else data.to(whole.device)
    if mask_actions:  # padding means nothing, be it what a policy wrote or what the data hold
        windows, data = (None if each is None else _masked(each, world_model) for each in (windows, data))
    reader = _reader(world_model, whole, data)
    allowed = _allowed_steps(world_model, whole, env_or_task)
    imagined = imagined_episodes(policy, world_model, whole[:, 0], allowed, mask_actions=mask_actions)
    summed: Any = {"gamma": gamma, "reward_space": reward_space, "reward_scale": reward_scale}
    gaps = [
        None if value_network is None or each is None else value_gap(world_model, value_network, each, **summed)
        for each in (whole, imagined)
    ]
    rewards = [each["next", "reward"].abs().max() for each in (whole, data) if each is not None]
    return TrustProbe(
        result=result,
        own=open_loop_errors(world_model, windows, steps, reader),
        data=None if data is None else open_loop_errors(world_model, data, steps, reader),
        observation_explained=None if reader is None or math.isnan(reader.explained) else reader.explained,
        imagined=None if imagined is None else imagined["next", "reward"].sum((1, 2)).double().cpu().numpy(),
        gap=gaps[0],
        imagined_gap=gaps[1],
        latents=latent_metrics(world_model, whole),
        peak=float(torch.stack(rewards).max()),
    )


def imagined_episodes(
    policy: TensorDictModuleBase,
    world_model: PWMWorldModel,
    starts: TensorDictBase,
    steps: int | Tensor,
    *,
    mask_actions: bool = False,
) -> TensorDictBase | None:
    """Whole episodes [E, L] inside the model under the mean action, in raw units; None without a latent to act on.

    Shorter ones are filled up with rewards of 0 and marked by ``("collector", "mask")``.

    Args:
        policy: reads ``latent``, or is a :class:`~torchrl_pwm.WorldModelPolicy`.
        world_model: the model.
        starts: [E] real start states with ``observation`` and, for a multi-task model, ``task``.
        steps: length of an episode, or of each [E], which ends before where a termination head says so.
        mask_actions: zero the padded entries of the action, as the loss does that has this option.

    Examples:
        >>> from torchrl_pwm import PWMWorldModel, make_pwm_actor
        >>> model = PWMWorldModel(observation_dim=5, action_dim=2, latent_dim=16, units=(32, 32))
        >>> starts = TensorDict({"observation": torch.zeros(3, 5)}, [3])
        >>> imagined_episodes(make_pwm_actor(16, 2), model, starts, 4)["next", "reward"].shape
        torch.Size([3, 4, 1])
    """
    actor: Any = policy.actor if isinstance(policy, WorldModelPolicy) else policy
    if "latent" not in getattr(actor, "in_keys", ()):
        return None
    task = starts["task"] if world_model.num_tasks else None
    head = gaussian_head(actor, "latent")
    allowed = torch.as_tensor(steps, device=starts.device).expand(len(starts))
    longest = int(allowed.max())
    with frozen(world_model), torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        latents, actions = [world_model.encode_observation(starts["observation"], task)], []
        context = world_model.task_context(task)
        for _ in range(longest):
            state = {"latent": latents[-1]} if task is None else {"latent": latents[-1], "task": task}
            mean = None if head is None else head(latents[-1])[0].tanh()
            action = actor(TensorDict(state, starts.batch_size))["action"] if mean is None else mean
            actions.append(world_model.masked(action, task) if mask_actions else action)
            latents.append(world_model.next_latent(latents[-1], actions[-1], context))
        visited, taken = torch.stack(latents), torch.stack(actions)
        # All at once: a reward decides nothing on the way.
        reward = world_model.decode_reward(world_model.reward_logits(visited[:-1], taken, context))
        ends = world_model.termination_logits(visited[1:], task) > 0 if world_model.termination else None
    terminated = torch.zeros_like(reward, dtype=torch.bool) if ends is None else ends
    before = terminated.long().cumsum(0) - terminated.long()
    numbers = torch.arange(longest, device=allowed.device)
    counts = (before.squeeze(-1) == 0) & (numbers[:, None] < allowed).to(reward.device)
    following = {"latent": visited[1:], "reward": torch.where(counts.unsqueeze(-1), reward, 0.0)}
    following |= {"terminated": terminated, "done": terminated}
    entries: dict[str, Any] = {"latent": visited[:-1], "action": taken, "next": following}
    if task is not None:
        entries["task"] = task.expand(longest, len(starts))
    episodes = TensorDict(entries, [longest, len(starts)]).set("collector", TensorDict({"mask": counts}, counts.shape))
    return episodes.transpose(0, 1)


def _allowed_steps(world_model: PWMWorldModel, whole: TensorDictBase, env: str | EnvBase) -> Tensor:
    """Steps [E] of the imagined episodes: up to the env's time limit where model and reality may both end them before,
    else as many as the real ones had.
    """
    mask = whole["collector", "mask"]
    lengths = mask.sum(1)
    if not world_model.termination:
        return lengths
    terminated = (whole["next", "terminated"].squeeze(-1) & mask).any(1)
    limit = None if isinstance(env, str) else time_limit(env)
    return torch.where(terminated, whole.shape[1] if limit is None else limit, lengths)


def _masked(steps: TensorDictBase, world_model: PWMWorldModel) -> TensorDictBase:
    """Steps [*] with zeros in the padding of their actions."""
    task = steps["task"] if world_model.num_tasks else None
    return steps.copy().set("action", world_model.masked(steps["action"], task))


def _play(policy: Any, env: str | EnvBase, episodes: int, **options: Any) -> tuple[EvaluationResult, TensorDictBase]:
    """Result and steps [E, L] of an evaluation's episodes, in its order, filled up to the longest."""
    played: list[TensorDictBase] = []
    result = evaluate_policy(
        policy,
        env,
        episodes=episodes,
        on_step=lambda step: played.append(step.select(*_READ, strict=False).detach().clone()),
        **options,
    )
    steps: Any = torch.stack([step.reshape(-1) for step in played], 1)
    done = steps["next", "done"].squeeze(-1).long()
    number, envs = done.cumsum(1) - done, len(steps)
    steps["collector"] = TensorDict({"mask": torch.ones_like(done, dtype=torch.bool)}, steps.batch_size)
    return result, pad_sequence([steps[k % envs][number[k % envs] == k // envs] for k in range(episodes)])


def _reader(world_model: PWMWorldModel, whole: TensorDictBase, data: TensorDictBase | None) -> ObservationReader | None:
    """Of states of both, so that it reads well on either; None for observations that are no vectors."""
    if len(world_model.observation_shape) != 1:
        return None
    keys = ["observation", *(["task"] if world_model.num_tasks else [])]
    states = [whole.select(*keys)[whole["collector", "mask"]]]
    states += [] if data is None else [data.select(*keys)[counting_steps(data)]]
    return ObservationReader(world_model, torch.cat(states))
