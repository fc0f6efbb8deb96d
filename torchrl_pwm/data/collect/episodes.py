"""Running episodes as a part of a checkpoint: the seeds that they began with and the actions since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl import torchrl_logger
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, Transform

from torchrl_pwm.envs.multitask import innermost_env


class RunningEpisodes:
    """The episodes that a collector's envs are in, so that they can be played again up to where they are.

    An env whose state cannot be saved comes to it again from the seed of its reset and the actions since, if these
    decide it. Every episode begins from a seed of its own, which follows from ``seed``, the env and the episode's
    number. The envs of a ``SerialEnv`` or ``ParallelEnv`` are seeded one by one, any other env as a whole: its episodes
    can be played again where all its rows began together.

    Args:
        collector (Collector): its env gets a transform that seeds it, and begins new episodes at once.
        seed (int): of all episodes.
    """

    def __init__(self, collector: Collector, seed: int) -> None:
        self.collector = collector
        self._resets = _SeededResets(seed, collector.env)
        collector.env = collector.env.append_transform(self._resets)
        self._actions: TensorDictBase | None = None
        collector.reset()

    def extend(self, batch: TensorDictBase) -> None:
        """Keeps the actions of the newest steps ``[N, T]``, and of those before as far back as an episode began."""
        new = batch.select(*self.collector.env.action_keys)
        joined = torch.cat([new] if self._actions is None else [self._actions, new], 1)
        self._actions = joined[:, joined.shape[1] - int(self._resets.ages.max()) :]

    def state_dict(self) -> dict[str, Any]:
        actions = {} if self._actions is None else self._actions.clone().to_dict()
        return {"begun": self._resets.begun.clone(), "ages": self._resets.ages.clone(), "actions": actions}

    @torch.no_grad()
    def play_again(self, state_dict: Mapping[str, Any], carrier: Mapping[str, Any]) -> bool:
        """Plays the saved episodes up to where they were; tells whether they came to the observations of ``carrier``.

        If not, new ones begin.
        """
        env, begun, ages = self.collector.env, state_dict["begun"], state_dict["ages"]
        actions = TensorDict(state_dict["actions"], [ages.numel(), int(ages.max())], device=env.device)
        # An env that cannot be taken apart is not seeded where a part of it is reset.
        same = bool((ages == ages[:, :1]).all())
        if same:
            with torch.random.fork_rng(devices=[]):  # which an env may draw from
                td = self._replay(begun, ages, actions)
            there = TensorDict(carrier, env.batch_size, device=env.device)
            same = all(torch.equal(td.get(key), there.get(key)) for key in env.observation_keys)
        self._resets.begun.copy_(begun)
        self._actions = actions if same and actions.shape[1] else None
        if not same:
            torchrl_logger.warning(
                "The envs' running episodes cannot be played again: their seeds and actions did not lead to where they "
                "were, or rows of one batched env began apart, where they have no seeds of their own. The run goes on, "
                "and begins new episodes: with other numbers than those of a run without interruption."
            )
            self.collector.reset()
        return same

    def _replay(self, begun: torch.Tensor, ages: torch.Tensor, actions: TensorDictBase) -> TensorDictBase:
        """All end together. What an env does before its own episode begins does not count."""
        env, resets = self.collector.env, self._resets
        resets.begun.copy_(begun - 1)
        td, length = env.reset(), actions.shape[1]
        for step in range(length + 1):
            done = td.get("done")
            mask = (ages == length - step).reshape(done.shape).to(done.device) | done
            if step and mask.any():
                resets.begun.copy_(begun - 1)
                td = env.reset(td.set("_reset", mask), select_reset_only=True)
            if step < length:
                td = env.step_mdp(env.step(td.update(actions[:, step].reshape(env.batch_size))))
        return td


class _SeededResets(Transform):
    """Seeds each env, or the whole where it cannot be taken apart, before its reset, and counts the steps since.

    (TorchRL seeds a Gymnasium env by a reset, so that it is reset twice.)
    """

    def __init__(self, seed: int, env: EnvBase) -> None:
        super().__init__()
        base = innermost_env(env)
        apart = isinstance(base, (SerialEnv, ParallelEnv))
        self.seed, self.parts = seed, [base[index] for index in range(base.num_workers)] if apart else [base]
        self.ages = torch.zeros(len(self.parts), env.batch_size.numel() // len(self.parts), dtype=torch.int64)
        self.begun = torch.zeros(len(self.parts), dtype=torch.int64)

    def _reset_env_preprocess(self, tensordict: TensorDictBase | None) -> TensorDictBase | None:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        rows = torch.ones_like(self.ages, dtype=torch.bool) if mask is None else mask.reshape(self.ages.shape).cpu()
        self.ages[rows] = 0
        for index in rows.all(-1).nonzero().flatten().tolist():
            self.begun[index] += 1
            number = int(self.begun[index]) * len(self.parts) + index
            self.parts[index].set_seed((1_000_003 * self.seed + number) % 2**32)
        return tensordict

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        self.ages += 1
        return next_tensordict
