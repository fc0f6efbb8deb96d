"""What the policies of a run begin with: weights of an earlier round, and start states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import ReplayBuffer, TensorDictReplayBuffer, TensorStorage

from torchrl_pwm._utils.devices import reads_ahead
from torchrl_pwm.data import EpisodeStore, ReplayMixture, TDMPC2ExperienceReplay, start_states
from torchrl_pwm.data.starts import encoded_starts
from torchrl_pwm.modules import PWMWorldModel, load_quickstart
from torchrl_pwm.runs.own_episodes import data_sets


@dataclass(frozen=True)
class Before:
    """What policies begin with.

    Args:
        folder: of the run or round whose policies they go on from; None for new ones.
        own: folders of data sets with episodes of their own.
        share: of the start states, from own episodes.
        matched: the same where these earn as much as the recorded ones, see :func:`own_share`; None for no other.
        sequences: of the last round's episodes, from which the critics learn in each update.
        finished: whether they are trained, and are to be evaluated alone.
    """

    folder: Path | None = None
    own: tuple[Path, ...] = ()
    share: float = 0.0
    matched: float | None = None
    sequences: int = 0
    finished: bool = False

    @property
    def stores(self) -> list[Path]:
        """The data sets in the folders of own episodes, one for each seed of a round."""
        return [found for root in self.own for found in data_sets(root)]

    def played_last(self, seed: int) -> Path | None:
        """The data set of the last round's episodes, of several seeds' that of one."""
        places = [place for root in self.own[-1:] for place in (root / f"seed-{seed}", root)]
        return next((place for place in places if (place / "manifest.json").exists()), None)


FRESH = Before()
_LOW = 1.5  # standard deviations of the recorded returns


def own_share(before: Before, data: Path, task: str) -> float:
    """The share of a task's start states that is from own episodes.

    Critics that learn from states of the policy's own episodes know where its rollouts end, and do not run away. But
    states of a policy that has found no reward lead to none. So the share is ``before.matched`` where the last round's
    episodes earn as much as the recorded ones, ``before.share`` where they earn 1.5 standard deviations of these less,
    and in between by how much they earn.
    """
    if not before.own:
        return 0.0
    if before.matched is None:
        return before.share
    (recorded,) = EpisodeStore(data).select(task)
    last = [rows for root in data_sets(before.own[-1]) for rows in EpisodeStore(root).select(task)]
    parts = recorded.behavior_return_mean / (recorded.return_mean or 1.0)  # rows of an episode
    spread = recorded.behavior_return_std or parts * recorded.return_std
    gap = recorded.behavior_return_mean - np.mean([rows.behavior_return_mean for rows in last])
    low = float(np.clip(gap / max(_LOW * spread, np.finfo(float).tiny), 0.0, 1.0))
    return before.matched + low * (before.share - before.matched)


def make_starts(
    config: Any,
    task: str,
    seed: int,
    model: PWMWorldModel,
    *,
    data: Path | None,
    before: Before,
    device: str,
    episodes: Any = None,
) -> ReplayBuffer | ReplayMixture:
    """The start states of a policy: drawn uniformly from all data as published, or from a few chosen ones.

    A share of them is from own episodes, where there are some. Of chosen ones the frozen model's latents are kept, so
    that no update has to encode them again. Of the data the numbers of those ``episodes`` count, default all.
    """
    settings = config.extraction
    if data is not None and not settings.starts:
        own, mine = before.stores, own_share(before, data, task)
        options = {"slice_len": 1, "tasks": [task], "seed": seed, "check_finite": False, **reads_ahead(device)}
        sizes = _sizes(settings.batch_size, mine, data, own)
        replays = [
            TDMPC2ExperienceReplay(root, size, episodes=episodes if root == data else None, **options)
            for root, size in sizes.items()
        ]
        return ReplayMixture(replays) if len(replays) > 1 else replays[0]
    if data is None:
        chosen = load_quickstart().starts[task]
    else:
        chosen, _ = choose_starts(settings.starts, task, seed, data=data, before=before, episodes=episodes)
    return TensorDictReplayBuffer(
        storage=TensorStorage(encoded_starts(chosen, model)),
        batch_size=settings.batch_size,
        generator=torch.Generator().manual_seed(seed),
    )


def choose_starts(
    settings: Mapping[str, Any], task: str, seed: int, *, data: Path, before: Before, episodes: Any = None
) -> tuple[TensorDict, int]:
    """Start states of a task's data, chosen as ``extraction.starts`` says, and a share of them from own episodes.

    And how many are the data's, which come first.
    """
    sizes, parts = _sizes(settings["count"], own_share(before, data, task), data, before.stores), []
    for root, size in sizes.items():
        which = {"episodes": episodes} if root == data else {"top": 1.0}
        options = {**settings, **which, "count": size}
        parts.append(start_states(EpisodeStore(root), task, seed=seed, **options))
    return torch.cat(parts), sizes.get(data, 0)


def _sizes(count: int, share: float, data: Path, own: list[Path]) -> dict[Path, int]:
    """How many of ``count`` start states are from the data and from each set of own episodes, where that is any.

    What does not go up evenly is from the newest ones.
    """
    played = round(share * count) if own else 0
    each, more = divmod(played, max(len(own), 1))
    sizes = {data: count - played}
    sizes |= {root: each + (number >= len(own) - more) for number, root in enumerate(own)}
    return {root: size for root, size in sizes.items() if size}


def make_recorded(task: str, seed: int, horizon: int, before: Before, device: str) -> TDMPC2ExperienceReplay | None:
    """Sequences [N, H] of a policy's own episodes in the last round, from which its critics learn, if they are to."""
    root = before.played_last(seed) if before.sequences else None
    if root is None:
        return None
    options = {"tasks": [task], "seed": seed, "strict_length": False, "check_finite": False, **reads_ahead(device)}
    return TDMPC2ExperienceReplay(root, before.sequences, slice_len=horizon, **options)
