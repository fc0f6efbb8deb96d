"""Collection of an env's own steps: a TorchRL collector, and the replay buffer that its steps go into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensordict import TensorDictBase
from torchrl import torchrl_logger
from torchrl.collectors import BaseCollector, Collector
from torchrl.data import ReplayBuffer

from torchrl_pwm._utils.finite import first_bad_step
from torchrl_pwm._utils.torchrl_private import collector_td, set_collector_td
from torchrl_pwm.data.collect.rows import as_rows, check_collector, end_newest_steps, end_rows
from torchrl_pwm.data.filled import filled_state, whole_state
from torchrl_pwm.envs.action_bounds import check_bounds
from torchrl_pwm.envs.simulators.state import has_state, load_env, save_env

__all__ = ["OnlineCollection"]


class OnlineCollection:
    """The newest steps of a collector, which go into a replay buffer first.

    The buffer's contents, as far as it is filled, are saved with a checkpoint. The envs' states are not, since envs in
    general cannot be saved: a resumed run begins new episodes, and those before it end in the buffer where they were.
    With an ``episode_seed`` it repeats the rest of the run, in one of two ways. The state of a simulator
    (:class:`~torchrl_pwm.SimulatorEnv`) is saved. Any other env is seeded anew, from ``episode_seed`` and the number of
    times, whenever a batch ends with the episodes of all its envs; a checkpoint of such a moment (:attr:`repeats`)
    needs no state.

    Args:
        collector (BaseCollector): a TorchRL collector in this process, or a synchronous one in several.
        replay_buffer (ReplayBuffer): is extended by ``[N, T]``.
        keys (sequence of NestedKey): the entries that are kept, where they are there.

    Keyword Args:
        episode_seed (int, optional): see above.

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
        self.starts = 0
        # Whether the next batch begins with new episodes in all envs, and whether the envs' episodes end apart.
        self._at_start, self._apart = True, False
        self._batches: Iterator[TensorDictBase] | None = None

    @property
    def repeats(self) -> bool:
        """Whether a checkpoint of this moment has all that the rest of the run depends on."""
        return self.episode_seed is not None and (self._at_start or has_state(self.collector.env))

    @property
    def may_repeat(self) -> bool:
        """Whether such a moment may still come."""
        return self.episode_seed is not None and not self._apart

    def collect(self) -> TensorDictBase:
        """The next steps ``[N, T]``, which are in the replay buffer then."""
        self._begin_episodes()
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
        self._note_ends(batch)
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

    def _begin_episodes(self) -> None:
        """Seeds an env whose state cannot be saved, where all its episodes begin."""
        if self.episode_seed is None or not self._at_start or has_state(self.collector.env):
            return
        self.collector.env.set_seed((1_000_003 * self.episode_seed + self.starts) % 2**32)
        self.collector.reset()
        self.starts += 1

    def _note_ends(self, batch: TensorDictBase) -> None:
        done = batch.get(("next", "done"))
        self._at_start = bool(done[:, -1].all())
        self._apart |= bool(done.any()) and not self._at_start

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"replay_buffer": filled_state(self.replay_buffer), "env_steps": self.env_steps}
        if self.episode_seed is None:
            return state
        env = self.collector.env
        # Of the collector: what its policy remembers, and how many of its steps were random.
        state |= {"collector": self.collector.state_dict(), "starts": self.starts, "at_start": self._at_start}
        state["env"] = save_env(env, collector_td(self.collector)) if has_state(env) else None
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.replay_buffer.load_state_dict(whole_state(state_dict["replay_buffer"]))
        self.env_steps = state_dict["env_steps"]
        if self.episode_seed is None or "starts" not in state_dict:
            if self.episode_seed is not None:
                torchrl_logger.warning(
                    "The checkpoint is of a run without episode_seed, which has no state of the envs: the run goes on, "
                    "and begins new episodes."
                )
            end_newest_steps(self.replay_buffer)
            return
        self.collector.load_state_dict(state_dict["collector"], strict=False)
        self.starts, self._at_start = state_dict["starts"], state_dict["at_start"]
        if state_dict["env"] is None:
            end_newest_steps(self.replay_buffer)
        else:
            td = load_env(self.collector.env, state_dict["env"])
            assert td is not None
            set_collector_td(self.collector, td)
