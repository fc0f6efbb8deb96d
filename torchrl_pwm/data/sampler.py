"""Sampler of slices of fixed-length rows, drawn by arithmetic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torchrl.data.replay_buffers import Storage
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.tensor_files import read_tensors
from torchrl_pwm._utils.torchrl_private import sampler_generator
from torchrl_pwm.data.store.storage import EpisodeStorage

__all__ = ["EpisodeSliceSampler"]


class EpisodeSliceSampler(Sampler):
    """Draws slices uniformly over all legal places: every row, every start from 0 to L - slice_len.

    One integer per slice is drawn; row and start follow by division. The cost depends neither on the size of the data
    nor on the number of episodes, and there is no episode column.

    Args:
        slice_len: transitions of a slice, T.
        seed: seed of the sampler's own generator. A replay buffer's generator goes first.
        start: first step from which slices may start, 0 for all.
        stop: step before which slices must start, None for all. ``start=0, stop=1`` draws the beginnings of rows only.

    Raises:
        ValueError: if ``slice_len`` is below one.

    Examples:
        >>> from torchrl_pwm.data import EpisodeSliceSampler, TDMPC2ExperienceReplay
        >>> sampler = EpisodeSliceSampler(17, seed=1)
        >>> replay = TDMPC2ExperienceReplay(root, 256, sampler=sampler)  # doctest: +SKIP
    """

    def __init__(self, slice_len: int = 17, *, seed: int = 0, start: int = 0, stop: int | None = None) -> None:
        if slice_len < 1:
            raise ValueError(f"slice_len is a number of transitions and at least 1, found {slice_len}")
        if start < 0 or (stop is not None and stop <= start):
            raise ValueError(f"starts go from start to stop, found start={start} and stop={stop}")
        self.slice_len = int(slice_len)
        self.start = int(start)
        self.stop = stop
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def generator(self) -> torch.Generator:
        """Generator of the draws: the replay buffer's if it has one, else the sampler's own."""
        given = sampler_generator(self)
        return self._generator if given is None else given

    def num_starts(self, storage: Storage) -> int:
        """Legal starts of a row.

        Raises:
            TypeError: if the storage is not an :class:`~torchrl_pwm.data.EpisodeStorage`.
            ValueError: if no slice fits.
        """
        if not isinstance(storage, EpisodeStorage):
            raise TypeError(f"EpisodeSliceSampler reads an EpisodeStorage, found {type(storage).__name__}")
        last = storage.row_length - self.slice_len + 1
        starts = min(last, last if self.stop is None else self.stop) - self.start
        if starts < 1:
            raise ValueError(
                f"no slice of {self.slice_len} transitions that starts at step {self.start} or later fits in rows of "
                f"{storage.row_length} transitions; use a smaller slice_len"
            )
        return starts

    def sample(self, storage: Storage, batch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """Draws item numbers [B, T] of slices."""
        starts = self.num_starts(storage)
        assert isinstance(storage, EpisodeStorage)
        drawn = torch.randint(storage.num_rows * starts, (batch_size, 1), generator=self.generator)
        row = torch.div(drawn, starts, rounding_mode="floor")
        first = row * storage.row_length + (drawn - row * starts) + self.start
        return first + torch.arange(self.slice_len), {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "slice_len": self.slice_len,
            "start": self.start,
            "stop": self.stop,
            "generator": self.generator.get_state().clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the saved sampler was.

        Raises:
            ValueError: if the saved sampler drew other slices.
        """
        for key in ("slice_len", "start", "stop"):
            if state_dict[key] != getattr(self, key):
                raise ValueError(
                    f"the state was saved with {key}={state_dict[key]}, this sampler has {getattr(self, key)}; build "
                    "it as it was saved"
                )
        self.generator.set_state(state_dict["generator"])

    def dumps(self, path: str | os.PathLike[str]) -> None:
        save_tensors(Path(path) / "sampler.pt", self.state_dict())

    def loads(self, path: str | os.PathLike[str]) -> None:
        self.load_state_dict(read_tensors(Path(path) / "sampler.pt", what="state of a sampler"))

    def _empty(self) -> None:
        """Nothing to forget: no draw depends on an earlier one."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_generator"] = self.generator.get_state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = torch.Generator()
        self._generator.set_state(state["_generator"])

    def __repr__(self) -> str:
        return f"EpisodeSliceSampler(slice_len={self.slice_len}, start={self.start}, stop={self.stop})"
