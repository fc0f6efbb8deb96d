"""Collection of an env's own steps: a TorchRL collector, and the replay buffer that its steps go into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensordict import TensorDictBase
from torchrl import torchrl_logger
from torchrl.collectors import BaseCollector, Collector
from torchrl.data import ReplayBuffer

from torchrl_pwm._utils.finite import first_bad_step
from torchrl_pwm._utils.torchrl_private import collector_td, lower_flags, set_collector_td
from torchrl_pwm.data.collect.episodes import RunningEpisodes
from torchrl_pwm.data.collect.rows import as_rows, check_collector, end_newest_steps, end_rows
from torchrl_pwm.data.filled import filled_state, whole_state
from torchrl_pwm.envs.action_bounds import check_bounds
from torchrl_pwm.envs.multitask import innermost_env
from torchrl_pwm.envs.simulators.state import has_state, load_env, save_env

__all__ = ["OnlineCollection"]


class OnlineCollection:
    """The newest steps of a collector, which go into a replay buffer first.

    The buffer's contents, as far as it is filled, are saved with a checkpoint. Without an ``episode_seed`` the envs'
    states are not: a resumed run begins new episodes, and those before it end in the buffer where they were. With one
    it repeats the rest of the run, in one of two ways. The state of a simulator (:class:`~torchrl_pwm.SimulatorEnv`) is
    saved. In any other env, whose state in general cannot be saved, every episode begins from a seed of its own, and a
    resumed run plays those that were running again, with the same actions; where they do not come to the same
    observations, a warning says so and new episodes begin.

    Args:
        collector (BaseCollector): a TorchRL collector in this process, or a synchronous one in several.
        replay_buffer (ReplayBuffer): is extended by ``[N, T]``.
        keys (sequence of NestedKey): the entries that are kept, where they are there.

    Keyword Args:
        episode_seed (int, optional): see above; a transform that seeds the collector's env is appended to it.

    Raises:
        FloatingPointError: in :meth:`collect`, for a NaN or an infinity among the entries that are kept; the entry, its
            env and step are named, and none of its batch is kept.
        ValueError: for an env whose actions are not in [-1, 1], an asynchronous collector, one whose workers add
            different numbers of steps, or one that splits trajectories; with an ``episode_seed``, for one in several
            processes; in :meth:`collect`, where a row of a batch holds several trajectories without an end between
            them.
    """

    def __init__(
        self,
        collector: BaseCollector,
        replay_buffer: ReplayBuffer,
        keys: Sequence[Any],
        *,
        episode_seed: int | None = None,
    ) -> None:
        check_collector(collector)
        if isinstance(collector, Collector):
            for key in collector.env.action_keys:
                check_bounds(collector.env, key)
        if episode_seed is not None and not isinstance(collector, Collector):
            raise ValueError(
                "episode_seed, by which a resumed run repeats the rest, needs a Collector in this process, found "
                f"{type(collector).__name__}: use Collector, or leave episode_seed out."
            )
        self.collector, self.replay_buffer, self.keys = collector, replay_buffer, list(keys)
        self.episode_seed = episode_seed
        self.env_steps = 0
        self._episodes: RunningEpisodes | None = None
        if episode_seed is not None and not has_state(collector.env):
            self._episodes = RunningEpisodes(collector, episode_seed)
        self._batches: Iterator[TensorDictBase] | None = None

    def collect(self) -> TensorDictBase:
        """The next steps ``[N, T]``, which are in the replay buffer then."""
        if self._batches is None:
            self._batches = iter(self.collector)
        # The workers of a multi-process collector act with copies of the networks.
        self.collector.update_policy_weights_()
        try:
            batch = next(self._batches, None)
        except FloatingPointError as error:  # of a simulator or planner, which looks at its own numbers
            raise FloatingPointError(
                f"{error} This was in the batch after {self.env_steps} steps of all envs together; nothing of it went "
                "into the replay."
            ) from error
        if batch is None:
            raise ValueError(
                f"The collector ended after {self.env_steps} steps: build it with total_frames=-1, the trainer's "
                "iterations say when to stop."
            )
        batch = as_rows(batch, self.collector)
        steps = batch.select(*self.keys, strict=False).copy()
        self._refuse_non_finite(steps)
        self.env_steps += batch.numel()
        if self._episodes is not None:
            self._episodes.extend(batch)
        # A collector that resets its envs before each batch leaves the episodes before it without an end.
        self.replay_buffer.extend(end_rows(steps) if self.collector.reset_at_each_iter else steps)
        return batch

    def _refuse_non_finite(self, steps: TensorDictBase) -> None:
        bad = first_bad_step(steps)
        if bad is None:
            return
        if isinstance(bad.key, tuple) and bad.key[0] == "next":
            cause = "the env made it of finite observations and actions: mend the env"
        elif ("next", bad.key) in steps.keys(True):
            cause = "a reset of the env gave it: mend the env"
        else:
            cause = "the policy made it of finite observations: look for a NaN in its weights"
        named = bad.named(first_step=self.env_steps // len(steps))
        raise FloatingPointError(
            f"Collected steps must be finite, but {named}, counted from the env's first in this run; {cause}. Nothing "
            f"of this batch, {steps.shape[1]} steps of each of {len(steps)} envs, went into the replay: a run that is "
            "resumed goes on from its last checkpoint, which is without it."
        )

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"replay_buffer": filled_state(self.replay_buffer), "env_steps": self.env_steps}
        if self.episode_seed is not None:
            # Of the collector: what its policy remembers, and how many of its steps were random.
            state["collector"] = self.collector.state_dict()
            state["env"] = save_env(self.collector.env, collector_td(self.collector))
            state["episodes"] = None if self._episodes is None else self._episodes.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.replay_buffer.load_state_dict(whole_state(state_dict["replay_buffer"]))
        self.env_steps = state_dict["env_steps"]
        if self.episode_seed is None or not self._load_episodes(state_dict):
            end_newest_steps(self.replay_buffer)

    def _load_episodes(self, state_dict: Mapping[str, Any]) -> bool:
        """Whether the envs are where they were."""
        if "collector" in state_dict:
            self.collector.load_state_dict(state_dict["collector"], strict=False)
            lower_flags(innermost_env(self.collector.env))
        env = state_dict.get("env")
        if env is None:
            torchrl_logger.warning(
                "The checkpoint is of a run without episode_seed, or of an earlier version, and has no state of the "
                "envs: the run goes on, and begins new episodes."
            )
            return False
        if self._episodes is not None and not self._episodes.play_again(state_dict["episodes"], env["carrier"]):
            return False
        td = load_env(self.collector.env, env)
        assert td is not None
        set_collector_td(self.collector, td)
        return True
