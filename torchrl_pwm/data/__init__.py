"""Offline data: episodes on disk, their replay buffer, conversion of published shards, and collection.

Every name is imported on first use, so that this folder loads without a simulator or hub client installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_pwm._utils.lazy import lazy_exports

if TYPE_CHECKING:
    from torchrl_pwm.data.collect.dataset import collect_dataset
    from torchrl_pwm.data.collect.recording import NoisyPolicy, record_steps
    from torchrl_pwm.data.collect.sac import SACConfig
    from torchrl_pwm.data.mixture import ReplayMixture
    from torchrl_pwm.data.parallel import ParallelSliceSampler, extend_with_recorded, make_online_replay
    from torchrl_pwm.data.published.convert import convert_shards
    from torchrl_pwm.data.published.download import download_checkpoint, download_shards
    from torchrl_pwm.data.replay import TDMPC2ExperienceReplay
    from torchrl_pwm.data.sampler import EpisodeSliceSampler
    from torchrl_pwm.data.starts import start_states
    from torchrl_pwm.data.store.storage import EpisodeStorage
    from torchrl_pwm.data.store.store import EpisodeStore
    from torchrl_pwm.data.store.writer import EpisodeStoreWriter

_HOME = {
    "EpisodeSliceSampler": "sampler",
    "EpisodeStorage": "store.storage",
    "EpisodeStore": "store.store",
    "EpisodeStoreWriter": "store.writer",
    "ParallelSliceSampler": "parallel",
    "ReplayMixture": "mixture",
    "SACConfig": "collect.sac",
    "TDMPC2ExperienceReplay": "replay",
    "collect_dataset": "collect.dataset",
    "convert_shards": "published.convert",
    "download_checkpoint": "published.download",
    "download_shards": "published.download",
    "extend_with_recorded": "parallel",
    "NoisyPolicy": "collect.recording",
    "record_steps": "collect.recording",
    "make_online_replay": "parallel",
    "start_states": "starts",
}

__all__ = [
    "EpisodeSliceSampler",
    "EpisodeStorage",
    "EpisodeStore",
    "EpisodeStoreWriter",
    "NoisyPolicy",
    "ParallelSliceSampler",
    "ReplayMixture",
    "SACConfig",
    "TDMPC2ExperienceReplay",
    "collect_dataset",
    "convert_shards",
    "download_checkpoint",
    "download_shards",
    "extend_with_recorded",
    "make_online_replay",
    "record_steps",
    "start_states",
]

__getattr__, __dir__ = lazy_exports(__name__, _HOME)
