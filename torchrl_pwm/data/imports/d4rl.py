"""HDF5 files in D4RL's layout: arrays of all steps, with flags where episodes end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torchrl import torchrl_logger

from torchrl_pwm._utils.door import read_hdf5
from torchrl_pwm.data.imports.episodes import Bounds, write_episodes
from torchrl_pwm.data.store.store import EpisodeStore

__all__ = ["import_d4rl"]

_NEEDED = ("observations", "actions", "rewards", "terminals")


def import_d4rl(
    file: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    name: str | None = None,
    action_low: Bounds | None = None,
    action_high: Bounds | None = None,
    clip_actions: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
    progress: bool = True,
) -> EpisodeStore:
    """Converts an HDF5 file in D4RL's layout to a data set for :class:`~torchrl_pwm.TDMPC2ExperienceReplay`.

    The file holds ``observations`` [N, O], ``actions`` [N, A], ``rewards`` [N] and ``terminals`` [N] of all steps one
    after the other, ``timeouts`` [N] where episodes were cut off, and, in later files, ``next_observations`` [N, O].
    The layout without ``next_observations`` does not have the observation after the last action of an episode: where an
    episode was cut off, that action is left out; where it was terminated, its reward and termination matter, and the
    observation before is taken for the one after. Both are counted in a log line and in the manifest.

    Args:
        file: the HDF5 file.
        root: folder of the data set to make.
        name: name of the task; default: that of the folder.
        action_low, action_high, clip_actions, dtype: see :func:`~torchrl_pwm.write_episodes`.
        progress: whether progress is shown.

    Returns:
        The opened data set.

    Raises:
        ImportError: if h5py is not installed.
        FileNotFoundError: if there is no such file.
        FileExistsError: if ``root`` holds anything.
        DamagedFileError: if the file is no HDF5 file, or damaged.
        ValueError: if it has another layout, and what :func:`~torchrl_pwm.write_episodes` refuses.

    Examples:
        >>> import h5py, numpy as np, tempfile
        >>> from torchrl_pwm import import_d4rl
        >>> folder = tempfile.mkdtemp()
        >>> with h5py.File(f"{folder}/steps.hdf5", "w") as file:
        ...     file["observations"], file["actions"] = np.random.randn(9, 3), np.zeros((9, 1))
        ...     file["rewards"], file["terminals"] = np.ones(9), np.arange(9) == 3
        ...     file["timeouts"] = np.arange(9) == 8
        >>> import_d4rl(f"{folder}/steps.hdf5", f"{folder}/data", progress=False).lengths.tolist()
        [4, 4]
    """
    path = Path(file)
    steps = _read(path)
    cuts = _Cuts(steps)
    source = {"kind": "d4rl", "file": path.name, "without_next_observation": cuts.missing}
    if cuts.missing["left_out"] or cuts.missing["repeated"]:
        torchrl_logger.info(
            f"{path.name} has no next_observations: the last action of {cuts.missing['left_out']:,} episodes that were "
            f"cut off is left out, and {cuts.missing['repeated']:,} that were terminated end in the observation before"
        )
    return write_episodes(
        root,
        cuts.episodes(),
        name=name,
        action_low=action_low,
        action_high=action_high,
        clip_actions=clip_actions,
        dtype=dtype,
        source=source,
        progress=progress,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file.

    Raises:
        ValueError: if one is missing or has another length.
    """
    steps = read_hdf5(path, _NEEDED, optional=("timeouts", "next_observations"), purpose="import_d4rl")
    steps.setdefault("timeouts", np.zeros(len(steps["rewards"]), bool))
    lengths = {key: len(array) for key, array in steps.items()}
    if len(set(lengths.values())) > 1 or not lengths["rewards"]:
        raise ValueError(f"the arrays of {path} must have one length and hold a step, found {lengths}")
    return steps


class _Cuts:
    """Steps cut into episodes.

    Attributes:
        missing: number of episodes whose last transition is left out, or ends in a repeated observation.
    """

    def __init__(self, steps: Mapping[str, np.ndarray]) -> None:
        self.steps = steps
        terminals = steps["terminals"].reshape(-1).astype(bool)
        ends = (terminals | steps["timeouts"].reshape(-1).astype(bool)).nonzero()[0] + 1
        stops = np.unique([*ends.tolist(), len(terminals)])
        self.spans = [(start, stop, bool(terminals[stop - 1])) for start, stop in zip([0, *stops], stops)]
        self.missing = {"left_out": 0, "repeated": 0}
        if "next_observations" not in steps:
            repeated = sum(terminated for *_, terminated in self.spans)
            self.missing = {"left_out": len(self.spans) - repeated, "repeated": repeated}

    def episodes(self) -> Iterator[Mapping[str, Any]]:
        """Each episode; one of a single step that was cut off has no transition and is left out."""
        observations, following = self.steps["observations"], self.steps.get("next_observations")
        for start, stop, terminated in self.spans:
            if following is not None:
                last = following[stop - 1 : stop]
            else:
                last = observations[stop - 1 : stop]
                stop = stop if terminated else stop - 1
            if following is not None and not np.allclose(following[start : stop - 1], observations[start + 1 : stop]):
                raise ValueError(
                    f"steps {start} to {stop - 1} are one episode by terminals and timeouts, but an observation is not "
                    "the next observation of the step before: mark all ends of episodes in timeouts"
                )
            if start < stop:
                yield {
                    "observation": np.concatenate([observations[start:stop], last]),
                    "action": self.steps["actions"][start:stop],
                    "reward": self.steps["rewards"][start:stop],
                    "terminated": terminated,
                }
