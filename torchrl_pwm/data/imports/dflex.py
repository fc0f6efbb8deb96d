"""The recorded data of PWM's single-task runs: pickled TensorDicts of DFlex episodes, of which no code is run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from torchrl_pwm._utils.errors import DamagedFileError
from torchrl_pwm._utils.files import file_sha256
from torchrl_pwm.data.imports.episodes import write_episodes
from torchrl_pwm.data.published.pickled import read_pickled_tensordict
from torchrl_pwm.data.store.store import EpisodeStore

__all__ = ["import_dflex"]


def import_dflex(
    file: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str],
    *,
    name: str | None = None,
    clip_actions: bool = False,
    dtype: Literal["float32", "float16"] = "float32",
    progress: bool = True,
) -> EpisodeStore:
    """Converts recorded DFlex data, as published with PWM, to a data set of episodes.

    A file is one pickled TensorDict [N, L + 1] of N episodes of L steps: ``obs`` [N, L + 1, O], ``action``
    [N, L + 1, A] and ``reward`` [N, L + 1]. Its rows are *arrival* rows: row t has the observation that the action of
    the same row led to, with the reward of that step, and in row 0 action and reward are filler (NaN). Here the action
    stands at the observation it was taken in. The episodes were written without early termination, so that each ends
    by being cut off.

    What comes out is read by :class:`~torchrl_pwm.TDMPC2ExperienceReplay`, and by ``pretraining.data=ROOT`` of
    ``torchrl-pwm simulator``.

    Args:
        file: the file, or several of one task.
        root: folder of the data set to make.

    Keyword Args:
        name: name of the task; default: that of the folder.
        clip_actions: clip actions beyond [-1, 1]; else they are refused.
        dtype: floating-point type on disk; samples are float32 whatever it is.
        progress: whether progress is shown.

    Returns:
        The opened data set.

    Raises:
        FileNotFoundError: if there is no such file.
        FileExistsError: if ``root`` holds anything.
        DamagedFileError: if a file cannot be read, or refers to anything but tensors and TensorDicts.
        ValueError: if it has another layout, and what :func:`~torchrl_pwm.write_episodes` refuses, such as numbers that
            are not finite. Nothing is left behind.

    Source: PWM (arXiv 2407.02466), single-task experiments, published data.

    Examples:
        >>> import tempfile
        >>> from tensordict import TensorDict
        >>> folder = tempfile.mkdtemp()
        >>> action, reward = torch.rand(2, 9, 3), torch.rand(2, 9)
        >>> action[:, 0], reward[:, 0] = torch.nan, torch.nan
        >>> episodes = TensorDict({"obs": torch.randn(2, 9, 5), "action": action, "reward": reward}, [2, 9])
        >>> torch.save(episodes, f"{folder}/hopper.pt")
        >>> import_dflex(f"{folder}/hopper.pt", f"{folder}/hopper", progress=False).lengths.tolist()
        [8, 8]
    """
    files = [Path(file)] if isinstance(file, (str, os.PathLike)) else [Path(part) for part in file]
    if not files:
        raise ValueError("import_dflex needs a file, found none")
    parts = [_open(path) for path in files]
    source = {"kind": "dflex", "files": [{"name": path.name, "sha256": file_sha256(path)} for path in files]}
    return write_episodes(
        root,
        (episode for part in parts for episode in _episodes(part)),
        name=name,
        clip_actions=clip_actions,
        dtype=dtype,
        source=source,
        progress=progress,
    )


def _open(path: Path) -> dict[str, Tensor]:
    """Entries of a file, with their shapes checked: obs [N, L + 1, O], action [N, L + 1, A], reward [N, L + 1]."""
    entries = read_pickled_tensordict(path, what="file of recorded DFlex data")
    missing = [key for key in ("obs", "action", "reward") if not isinstance(entries.get(key), Tensor)]
    if missing:
        raise DamagedFileError(
            f"{path} has no tensor {', '.join(missing)}: expected obs, action and reward, as PWM's recorded DFlex data "
            f"have them, found {sorted(map(str, entries))[:8]}"
        )
    obs, action, reward = entries["obs"], entries["action"], entries["reward"]
    reward = reward.squeeze(-1) if reward.ndim == 3 and reward.shape[-1] == 1 else reward
    rows = tuple(obs.shape[:2])
    if obs.ndim != 3 or action.ndim != 3 or tuple(action.shape[:2]) != rows or tuple(reward.shape) != rows:
        raise DamagedFileError(
            f"{path} has obs, action and reward of shapes {tuple(obs.shape)}, {tuple(action.shape)} and "
            f"{tuple(reward.shape)}, expected (N, L + 1, O), (N, L + 1, A) and (N, L + 1)"
        )
    if rows[0] < 1 or rows[1] < 2:
        raise DamagedFileError(
            f"{path} has obs of shape {tuple(obs.shape)}, expected one episode or more, of a step or more"
        )
    if not (action[:, 0].isnan().all() and reward[:, 0].isnan().all()):
        raise DamagedFileError(
            f"{path} has numbers in action or reward of row 0, expected filler (NaN): its rows are no arrival rows; "
            "write such episodes with write_episodes"
        )
    return {"obs": obs, "action": action, "reward": reward}


def _episodes(part: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    for obs, action, reward in zip(part["obs"], part["action"], part["reward"]):
        yield {"observation": _whole(obs), "action": _whole(action[1:]), "reward": _whole(reward[1:])}


def _whole(numbers: Tensor) -> Tensor:
    # numpy knows no bfloat16; a permuted view is copied an episode at a time
    return (numbers.float() if numbers.dtype == torch.bfloat16 else numbers).contiguous()
