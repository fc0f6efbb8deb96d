"""The offline replay buffer of the MT30 and MT80 data sets, and of any data set in this format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data.datasets.common import BaseDatasetExperienceReplay
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.writers import ImmutableDatasetWriter, Writer

from torchrl_pwm._utils.checkpoint import save_tensors
from torchrl_pwm._utils.door import making, read_tensors
from torchrl_pwm._utils.files import default_root
from torchrl_pwm._utils.ranges import COUNT, check_range
from torchrl_pwm._utils.torchrl_private import (
    fitting_prefetched,
    map_prefetched,
    prefetch_in_one_thread,
    without_prefetched,
)
from torchrl_pwm.data.sampler import EpisodeSliceSampler
from torchrl_pwm.data.store.storage import EpisodeStorage
from torchrl_pwm.data.store.store import EpisodeStore

__all__ = ["TDMPC2ExperienceReplay"]

_PUBLISHED = ("mt30", "mt80")


class TDMPC2ExperienceReplay(BaseDatasetExperienceReplay):
    """Slices of offline episodes, as a TorchRL data set.

    A sample is a TensorDict [B, T] of consecutive transitions that never cross an episode, row or task: ``observation``
    float32 [B, T, O], ``action`` float32 [B, T, A], ``task`` int64 [B, T], ``("next", "observation")``,
    ``("next", "reward")`` float32 [B, T, 1] in raw units, ``("next", "done")``, ``("next", "terminated")`` and
    ``("next", "truncated")`` bool [B, T, 1], and ``index`` int64 [B, T], the item numbers of the storage. Start
    states are ``sample()[:, 0]``. Entries beyond a task's own observation are zero; entries beyond its own action
    hold random numbers, in published as in collected data.

    A slice is one read of a file: opening is immediate and memory use does not grow with the data. The buffer is
    read-only, owns its generator, and a restored ``state_dict`` goes on with the same samples bit for bit, with
    prefetching too.

    Args:
        dataset_id: ``"mt30"`` or ``"mt80"``, looked up under ``root``; or the folder of any data set made by
            :func:`~torchrl_pwm.write_episodes`, :func:`~torchrl_pwm.import_minari`,
            :func:`~torchrl_pwm.data.convert_shards` or :func:`~torchrl_pwm.data.collect_dataset`.
        batch_size: slices of a sample; may be given to :meth:`sample` instead, but not with ``prefetch``.
        root: folder that holds the published data sets; default ``~/.cache/torchrl/torchrl_pwm``.
        slice_len: transitions of a slice, T.
        tasks: names or indices of the tasks to draw from; None draws from all. Nothing is copied.
        episodes: rows to draw from, by their numbers or as bool [N], such as one of the halves of
            :func:`~torchrl_pwm.data.split_episodes`; None draws from all.
        strict_length: whether episodes shorter than a slice are left out, else padded by their last transition and
            masked, see :class:`~torchrl_pwm.data.EpisodeSliceSampler`.
        download: fetch and convert the published data set if ``root`` does not hold it. An interrupted download goes
            on where it stopped, and every file is compared with the checksum that the hub states. The shards are kept
            in ``<root>/shards`` and can then be deleted. Needs the ``hub`` extra.
        sampler: TorchRL sampler in place of the slice sampler; ``slice_len`` is then not used.
        writer: TorchRL writer; default refuses to write.
        collate_fn: applied to a read batch; default none.
        pin_memory: whether batches are pinned.
        prefetch: batches read ahead by a thread.
        transform: TorchRL transform applied to a sample.
        seed: seed of the generator that is made when ``generator`` is None.
        generator: generator of the draws.
        verify: compare the checksum of every file before anything is read.
        check_finite: check every batch for NaN and infinity, and for actions outside [-1, 1].

    Raises:
        FileNotFoundError: if there is no such data set.
        ValueError: if the data set is damaged or of another task set, a task is unknown or has no data, or no slice
            of ``slice_len`` fits, or ``batch_size`` is below one.
        ConnectionError: if a download stops.
        ImportError: for a download without the ``hub`` extra.

    Examples:
        >>> import tempfile, numpy as np
        >>> from torchrl_pwm.data import EpisodeStoreWriter, TDMPC2ExperienceReplay
        >>> root = tempfile.mkdtemp()
        >>> with EpisodeStoreWriter(root, "mt30", {"cheetah-run": 4}, row_length=50) as writer:
        ...     writer.write("cheetah-run", np.zeros((4, 51, 24)), np.zeros((4, 50, 6)), np.ones((4, 50)))
        >>> replay = TDMPC2ExperienceReplay(root, batch_size=8, slice_len=17, tasks=["cheetah-run"])
        >>> batch = replay.sample()
        >>> batch.shape, batch["next", "reward"].shape
        (torch.Size([8, 17]), torch.Size([8, 17, 1]))
        >>> batch[:, 0]["observation"].shape
        torch.Size([8, 24])
    """

    available_datasets = _PUBLISHED

    def __init__(
        self,
        dataset_id: str | os.PathLike[str],
        batch_size: int | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
        slice_len: int = 17,
        tasks: str | int | Iterable[str | int] | None = None,
        episodes: Any = None,
        strict_length: bool = True,
        download: bool = False,
        sampler: Sampler | None = None,
        writer: Writer | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        prefetch: int | None = None,
        transform: Any = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        verify: bool = False,
        check_finite: bool = True,
    ) -> None:
        if batch_size is not None:
            check_range(COUNT, batch_size=batch_size)
        self.dataset_id = os.fspath(dataset_id)
        self._pins = pin_memory
        self.root = Path(root) if root is not None else default_root()
        if download and not self._is_downloaded():
            self._download()
        self.store = self._open(verify)
        if sampler is None:
            sampler = EpisodeSliceSampler(slice_len, strict_length=strict_length)
        wanted = tasks if tasks is None else _as_list(tasks)
        storage = EpisodeStorage(self.store, wanted, episodes=episodes, check_finite=check_finite)
        if isinstance(sampler, EpisodeSliceSampler):
            sampler.places(storage)  # a slice that fits nowhere is refused here, not at the first sample
        super().__init__(
            batch_size=batch_size,
            storage=storage,
            sampler=sampler,
            writer=ImmutableDatasetWriter() if writer is None else writer,
            collate_fn=_unchanged if collate_fn is None else collate_fn,
            pin_memory=pin_memory,
            prefetch=prefetch,
            transform=transform,
            generator=torch.Generator().manual_seed(seed) if generator is None else generator,
        )
        prefetch_in_one_thread(self)

    def _open(self, verify: bool) -> EpisodeStore:
        path = self.data_path
        if not path.is_dir():
            if self.dataset_id in _PUBLISHED:
                raise FileNotFoundError(
                    f"{self.dataset_id} was not found in {path}; pass download=True, or convert shards that you have "
                    f"with convert_shards(folder, {str(path)!r}, task_set={self.dataset_id!r}), or pass the folder "
                    "of a converted or collected data set"
                )
            raise FileNotFoundError(
                f"there is no data set in {path}; pass 'mt30', 'mt80' or a folder made by write_episodes, "
                "import_minari, import_d4rl, convert_shards or collect_dataset"
            )
        store = EpisodeStore(path, verify=verify)
        if self.dataset_id in _PUBLISHED and store.manifest.task_set != self.dataset_id:
            raise ValueError(f"{path} should hold {self.dataset_id}, but its manifest says {store.manifest.task_set}")
        return store

    def _download(self) -> None:
        if self.dataset_id not in _PUBLISHED:
            raise ValueError(f"only {' and '.join(_PUBLISHED)} can be downloaded, found dataset_id={self.dataset_id!r}")
        from torchrl_pwm.data.published.convert import convert_shards
        from torchrl_pwm.data.published.download import download_shards

        shards = download_shards(self.dataset_id, self.root / "shards")
        convert_shards(shards, self.data_path, task_set=self.dataset_id)

    def _is_downloaded(self) -> bool:
        return self.data_path.is_dir() and any(self.data_path.iterdir())

    @property
    def data_path(self) -> Path:
        """Folder of the data set."""
        return self.root / self.dataset_id if self.dataset_id in _PUBLISHED else Path(self.dataset_id)

    @property
    def data_path_root(self) -> Path:
        """Folder of the data set; it has no splits."""
        return self.data_path

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that samples are drawn from."""
        return self.storage.tasks

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Per drawn task: rows, transitions, ``behavior_return_mean``, ``behavior_return_std``, ``success_mean``."""
        statistics = self.store.statistics()
        return {name: statistics[name] for name in self.tasks}

    def _read(self, index: torch.Tensor) -> tuple[TensorDictBase, dict[str, Any]]:
        """What a sample of this index gives."""
        data = self[index]
        mask = self.sampler.mask(index) if isinstance(self.sampler, EpisodeSliceSampler) else {}
        return data.pin_memory() if self._pins else data, {**mask, "index": index}

    def state_dict(self) -> dict[str, Any]:
        """Generator, sampler and the items read ahead; plain tensors, numbers and strings."""
        # the data cannot change, so the numbers of the items are enough to read them again
        state = map_prefetched(super().state_dict(), lambda result: result[1]["index"].clone())
        if isinstance(self.sampler, EpisodeSliceSampler) and self.sampler.part is not None:
            # A part of a batch is of use to the process alone that read it ahead: the batches are drawn again.
            return without_prefetched(state, self.sampler.generator_before)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the saved buffer was, whether or not one of the two reads ahead.

        Raises:
            ValueError: if it was saved with other data, tasks or slices.
        """
        super().load_state_dict(map_prefetched(fitting_prefetched(self, state_dict), self._read))

    def dumps(self, path: str | os.PathLike[str]) -> None:
        """Writes :meth:`state_dict` to the folder ``path``; the data stays where it is."""
        save_tensors(Path(path) / "replay.pt", self.state_dict())

    def loads(self, path: str | os.PathLike[str]) -> None:
        """Reads what :meth:`dumps` wrote; no pickled code is run.

        Raises:
            FileNotFoundError: if there is no such file.
            DamagedFileError: if it is damaged, or of something else.
            ValueError: as :meth:`load_state_dict`.
        """
        file = Path(path) / "replay.pt"
        state = read_tensors(file, what="state of a replay buffer")
        with making("state of a replay buffer", file):
            self.load_state_dict(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        prefetch_in_one_thread(self)


def _unchanged(data: Any) -> Any:
    return data


def _as_list(tasks: str | int | Iterable[str | int]) -> list[str | int]:
    return [tasks] if isinstance(tasks, (str, int)) else list(tasks)
