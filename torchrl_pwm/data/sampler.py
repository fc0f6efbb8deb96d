"""Sampler of slices of rows and episodes, drawn by arithmetic."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torchrl import torchrl_logger
from torchrl.data.replay_buffers import Storage
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.door import making, read_tensors
from torchrl_pwm._utils.torchrl_private import sampler_generator
from torchrl_pwm.data.store.layout import SliceStarts
from torchrl_pwm.data.store.storage import EpisodeStorage

__all__ = ["EpisodeSliceSampler"]

_REMEMBERED = 64  # draws of a part; more than a buffer ever reads ahead


class EpisodeSliceSampler(Sampler):
    """Draws slices uniformly over all legal places: every row, every start from 0 to L - slice_len.

    One integer per slice is drawn; row and start follow by division, or in episodes of any length by bisection. The
    cost does not depend on the size of the data, and there is no episode column. A slice never crosses the end of an
    episode.

    Episodes shorter than a slice are treated as by TorchRL's ``SliceSampler``: they are left out, which is logged once
    with their number, or with ``strict_length=False`` padded by their last transition. A sample then has the entry
    ``("collector", "mask")``, bool [B, T], False where a step was added, which TorchRL's losses and those of this
    package leave out.

    Args:
        slice_len: transitions of a slice, T.
        seed: seed of the sampler's own generator. A replay buffer's generator goes first.
        start: first step from which slices may start, 0 for all.
        stop: step before which slices must start, None for all. ``start=0, stop=1`` draws the beginnings of rows only.
        strict_length: whether episodes shorter than a slice are left out; else they are padded.
        part: number of this process, from 0 on, and number of processes that draw together, each with the same
            generator. A sample of ``batch_size`` slices is then drawn by all, and each gets its part of the rows, so
            that together they have what one process alone would.

    Raises:
        ValueError: if ``slice_len`` is below one, or there is no such part; at a sample, if it cannot be divided.

    Examples:
        >>> from torchrl_pwm.data import EpisodeSliceSampler, TDMPC2ExperienceReplay
        >>> sampler = EpisodeSliceSampler(17, seed=1)
        >>> replay = TDMPC2ExperienceReplay(root, 256, sampler=sampler)  # doctest: +SKIP
    """

    def __init__(
        self,
        slice_len: int = 17,
        *,
        seed: int = 0,
        start: int = 0,
        stop: int | None = None,
        strict_length: bool = True,
        part: tuple[int, int] | None = None,
    ) -> None:
        if slice_len < 1:
            raise ValueError(f"slice_len is a number of transitions and at least 1, found {slice_len}")
        if start < 0 or (stop is not None and stop <= start):
            raise ValueError(f"starts go from start to stop, found start={start} and stop={stop}")
        if part is not None and not 0 <= part[0] < part[1]:
            raise ValueError(f"part is a number from 0 on, and how many parts there are, found {part}")
        self.part = part
        self._before: deque[torch.Tensor] = deque(maxlen=_REMEMBERED)
        self.slice_len = int(slice_len)
        self.start = int(start)
        self.stop = stop
        self.strict_length = strict_length
        self._starts: tuple[Storage, SliceStarts] | None = None
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def generator(self) -> torch.Generator:
        """Generator of the draws: the replay buffer's if it has one, else the sampler's own."""
        given = sampler_generator(self)
        return self._generator if given is None else given

    def places(self, storage: Storage) -> SliceStarts:
        """The places at which slices may start, found once for a storage.

        Raises:
            TypeError: if the storage is not an :class:`~torchrl_pwm.data.EpisodeStorage`.
            ValueError: if no slice fits.
        """
        if self._starts is not None and self._starts[0] is storage:
            return self._starts[1]
        if not isinstance(storage, EpisodeStorage):
            raise TypeError(f"EpisodeSliceSampler reads an EpisodeStorage, found {type(storage).__name__}")
        layout = storage.layout
        starts = layout.starts(self.slice_len, self.start, self.stop, self.strict_length)
        if not starts.places:
            raise ValueError(
                f"no slice of {self.slice_len} transitions that starts at step {self.start} or later fits in rows of "
                f"{layout.longest} transitions at most; use a smaller slice_len, or strict_length=False to pad them"
            )
        if starts.rows < layout.num_rows and not self.start:
            torchrl_logger.info(
                f"{layout.num_rows - starts.rows:,} of {layout.num_rows:,} episodes are shorter than slices of "
                f"{self.slice_len} transitions and left out, {layout.num_transitions - starts.transitions:,} of "
                f"{layout.num_transitions:,} transitions; strict_length=False pads them"
            )
        self._starts = (storage, starts)
        return starts

    def sample(self, storage: Storage, batch_size: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """Draws item numbers [B, T] of slices."""
        starts = self.places(storage)
        assert isinstance(storage, EpisodeStorage)
        if self.part is not None:
            self._before.append(self.generator.get_state())
        drawn = self._own(torch.randint(starts.places, (batch_size, 1), generator=self.generator))
        items = storage.layout.slices(starts, drawn, self.slice_len, self.start)
        return items, self.mask(items)

    def _own(self, drawn: torch.Tensor) -> torch.Tensor:
        """The part of a draw [B, 1] that this process gets."""
        if self.part is None:
            return drawn
        number, parts = self.part
        if len(drawn) % parts:
            raise ValueError(
                f"{parts} processes share a batch, found one of {len(drawn)} slices: choose a batch_size that is a "
                f"multiple of {parts}"
            )
        return drawn.chunk(parts)[number]

    def generator_before(self, draws: int) -> torch.Tensor:
        """State of the generator before the last ``draws`` draws of a part."""
        return self._before[-draws] if draws else self.generator.get_state()

    def mask(self, items: torch.Tensor) -> dict[Any, torch.Tensor]:
        """The entry that says which steps of slices ``items`` [B, T] were not added, where episodes are padded."""
        if self.strict_length:
            return {}
        new = torch.cat([torch.ones_like(items[:, :1]), items.diff(dim=1)], 1) > 0
        return {("collector", "mask"): new}

    def state_dict(self) -> dict[str, Any]:
        return {
            "slice_len": self.slice_len,
            "start": self.start,
            "stop": self.stop,
            "strict_length": self.strict_length,
            "generator": self.generator.get_state().clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the saved sampler was.

        Raises:
            ValueError: if the saved sampler drew other slices.
        """
        for key in ("slice_len", "start", "stop", "strict_length"):
            saved = state_dict.get(key, True)  # strict_length of states that do not say
            if saved != getattr(self, key):
                raise ValueError(
                    f"the state was saved with {key}={saved}, this sampler has {getattr(self, key)}; build it as it "
                    "was saved"
                )
        self.generator.set_state(state_dict["generator"])

    def dumps(self, path: str | os.PathLike[str]) -> None:
        save_tensors(Path(path) / "sampler.pt", self.state_dict())

    def loads(self, path: str | os.PathLike[str]) -> None:
        file = Path(path) / "sampler.pt"
        state = read_tensors(file, what="state of a sampler")
        with making("state of a sampler", file):
            kept = {key: state[key] for key in ("slice_len", "generator")}  # a file of anything else has none
            self.load_state_dict({**state, **kept})

    def _empty(self) -> None:
        """Nothing to forget: no draw depends on an earlier one."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_generator"] = self.generator.get_state()
        state["_starts"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = torch.Generator()
        self._generator.set_state(state["_generator"])

    def __repr__(self) -> str:
        return (
            f"EpisodeSliceSampler(slice_len={self.slice_len}, start={self.start}, stop={self.stop}, "
            f"strict_length={self.strict_length})"
        )
