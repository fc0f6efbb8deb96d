"""Downloads the published TD-MPC2 shards."""

from __future__ import annotations

import os
from pathlib import Path

from torchrl_pwm.data.convert import SHARD_COUNTS, shard_names
from torchrl_pwm.envs._extras import require

__all__ = ["HUB_REPOSITORY", "download_shards"]

HUB_REPOSITORY = "nicklashansen/tdmpc2"


def download_shards(task_set: str, *, cache_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Downloads the shards of a published data set into the cache of huggingface_hub.

    Files that are in the cache are not fetched again and broken downloads go on where they stopped. MT30 is about 20
    GB and MT80 about 34 GB; converted to float32 they take about 42 GB and 98 GB.

    Args:
        task_set: ``"mt30"`` or ``"mt80"``.
        cache_dir: cache folder in place of huggingface_hub's own.

    Returns:
        Paths of the shards in order.

    Raises:
        ValueError: for another task set.
        ImportError: without the ``hub`` extra.

    Examples:
        >>> from torchrl_pwm.data import convert_shards, download_shards
        >>> convert_shards(download_shards("mt30"), "data/mt30", task_set="mt30")  # doctest: +SKIP
    """
    if task_set not in SHARD_COUNTS:
        raise ValueError(f"published data sets are {', '.join(SHARD_COUNTS)}, found {task_set!r}")
    hub = require("huggingface_hub", extra="hub", purpose="a download")
    return [
        Path(
            hub.hf_hub_download(HUB_REPOSITORY, f"{task_set}/{name}", repo_type="dataset", cache_dir=cache_dir),
        )
        for name in shard_names(task_set)
    ]
