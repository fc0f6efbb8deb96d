"""Replay of envs that run side by side: slices of consecutive steps from a storage of time by envs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers import Storage
from torchrl.data.replay_buffers.samplers import Sampler
from torchrl.data.replay_buffers.writers import RoundRobinWriter

from torchrl_pwm._utils.finite import first_bad_step
from torchrl_pwm._utils.ranges import COUNT, check_range
from torchrl_pwm._utils.torchrl_private import sampler_generator

__all__ = ["ParallelSliceSampler", "extend_with_recorded", "make_online_replay"]


class ParallelSliceSampler(Sampler):
    """Draws slices of T consecutive steps of one env, uniformly, from a storage of shape [time, envs].

    Time and env are drawn by arithmetic, at a cost that depends neither on the number of steps nor of episodes. A slice
    never spans the place where the newest steps overwrite the oldest. It may span the end of an episode: its later
    steps belong to the next one then, which :class:`~torchrl_pwm.PWMWorldModelLoss` leaves out by the ``done`` entry.

    Args:
        slice_len (int): steps of a slice, T.

    Raises:
        ValueError: if ``slice_len`` is below one; at a sample, if the storage is not [time, envs], no slice fits yet,
            or the batch size is no multiple of ``slice_len``.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> replay = make_online_replay(1000, slice_len=5, batch_size=3)
        >>> _ = replay.extend(TensorDict({"step": torch.arange(20).expand(4, 20)}, [4, 20]))
        >>> (replay.sample()["step"].diff(dim=1) == 1).all().item()
        True
    """

    def __init__(self, slice_len: int) -> None:
        if slice_len < 1:
            raise ValueError(f"slice_len is a number of steps and at least 1, found {slice_len}.")
        self.slice_len = int(slice_len)
        self._newest = -1

    @property
    def newest(self) -> int:
        """Where in time the newest step lies."""
        return self._newest

    def extend(self, index: torch.Tensor) -> None:
        """Notes where the newest step lies; called by the replay buffer."""
        self._newest = int(index.reshape(-1, index.shape[-1])[-1, 0])

    def sample(self, storage: Storage, batch_size: int) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        if storage.ndim != 2:
            raise ValueError(
                f"ParallelSliceSampler reads a storage with ndim=2, [time, envs], found ndim={storage.ndim}."
            )
        if batch_size % self.slice_len:
            raise ValueError(
                f"The batch size is a number of steps: expected a multiple of slice_len={self.slice_len}, found "
                f"{batch_size}."
            )
        capacity, envs = storage.shape
        steps = len(storage) // envs
        starts = steps - self.slice_len + 1
        if starts < 1:
            raise ValueError(
                f"No slice of {self.slice_len} steps fits into the {steps} steps that {envs} envs have taken so far; "
                "collect more before the first sample, or use a smaller slice_len."
            )
        count, generator = batch_size // self.slice_len, sampler_generator(self)
        # Counted from the oldest step, which follows the newest one around the ring.
        first = torch.randint(starts, (count, 1), generator=generator)
        oldest = self._newest + 1 if steps == capacity else 0
        time = (oldest + first + torch.arange(self.slice_len)) % capacity
        env = torch.randint(envs, (count, 1), generator=generator).expand_as(time)
        return (time, env), {}

    def state_dict(self) -> dict[str, Any]:
        return {"newest": self._newest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._newest = state_dict["newest"]

    def _empty(self) -> None:
        self._newest = -1

    def dumps(self, path: str | Path) -> None:
        raise NotImplementedError("save the sampler with state_dict()")

    def loads(self, path: str | Path) -> None:
        raise NotImplementedError("load the sampler with load_state_dict()")


class FiniteWriter(RoundRobinWriter):
    """TorchRL's writer in turn, which refuses steps with a NaN or an infinity before any of them is written.

    Raises:
        FloatingPointError: from ``extend`` and ``add`` of the replay buffer; names the entry, its env and step.
    """

    def extend(self, data: Any) -> torch.Tensor:
        # The buffer hands over steps as they lie in its storage, [time, envs].
        if isinstance(data, TensorDictBase):
            _refuse_non_finite(data.transpose(0, 1), "a replay", "leave them out, or the entry by exclude()")
        return super().extend(data)

    def add(self, data: Any) -> Any:
        if isinstance(data, TensorDictBase):
            _refuse_non_finite(data.unsqueeze(-1), "a replay", "leave them out, or the entry by exclude()")
        return super().add(data)


def make_online_replay(
    capacity: int, *, slice_len: int = 16, batch_size: int = 256, seed: int = 0, device: torch.device | str = "cpu"
) -> ReplayBuffer:
    """A TorchRL replay buffer for steps of envs that run side by side.

    Extend it with batches ``[N, T]``, the next T steps of the same N envs, as a collector gives them; it gives
    sequences ``[batch_size, slice_len]``. A batch with a NaN or an infinity is refused, and nothing of it is written.

    Args:
        capacity (int): number of steps it holds, of all envs together; the oldest are overwritten.

    Keyword Args:
        slice_len (int): steps of a sequence.
        batch_size (int): sequences of a sample.
        seed (int): seed of its own generator.
        device: where the steps are kept.

    Raises:
        ValueError: if the capacity is below one slice, or a slice or a batch below one step.
        FloatingPointError: from its ``extend``, for a number that is not finite; the entry, its env and step are named.

    Examples:
        >>> from torchrl.collectors import Collector
        >>> from torchrl_pwm.envs.simulators import AnalyticEnv
        >>> replay = make_online_replay(10_000, slice_len=8, batch_size=4)
        >>> for batch in Collector(AnalyticEnv("double_pendulum", 16), frames_per_batch=320, total_frames=640):
        ...     _ = replay.extend(batch)
        >>> replay.sample().shape
        torch.Size([4, 8])
    """
    check_range(COUNT, slice_len=slice_len, batch_size=batch_size)
    if capacity < slice_len:
        raise ValueError(f"capacity must be at least slice_len={slice_len} steps, found {capacity}.")
    return ReplayBuffer(
        storage=LazyTensorStorage(capacity, ndim=2, device=device),
        sampler=ParallelSliceSampler(slice_len),
        writer=FiniteWriter(),
        batch_size=batch_size * slice_len,
        generator=torch.Generator().manual_seed(seed),
    )


def extend_with_recorded(replay: ReplayBuffer, recorded: TensorDictBase, num_envs: int) -> None:
    """Puts steps that were recorded earlier into the replay buffer of ``num_envs`` envs, before their first own steps.

    Args:
        replay (ReplayBuffer): see :func:`make_online_replay`.
        recorded (TensorDictBase): transitions ``[N, T]`` of N envs; N is a multiple of ``num_envs``. They lie one after
            the other in the replay, and each ends there: its last step counts as ``done``.
        num_envs (int): envs whose steps follow.

    Raises:
        ValueError: if the recorded envs cannot be shared out equally.
        FloatingPointError: for a number that is not finite; the entry, its row and step are named, and nothing is put
            into the replay.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> replay = make_online_replay(1000, slice_len=5, batch_size=3)
        >>> done = torch.zeros(8, 20, 1, dtype=torch.bool)
        >>> extend_with_recorded(replay, TensorDict({"next": {"done": done}}, [8, 20]), num_envs=4)
        >>> len(replay), replay["next", "done"].sum().item()
        (160, 8)
    """
    if recorded.ndim != 2 or len(recorded) % num_envs:
        raise ValueError(
            f"expected recorded steps [N, T] with N a multiple of the {num_envs} envs that go on from them, found "
            f"batch {list(recorded.batch_size)}: leave some out, or use another num_envs."
        )
    _refuse_non_finite(recorded, "recorded data", "leave its row out, or find out where it comes from", row="row")
    for steps in recorded.split(num_envs):
        steps = steps.clone()
        steps["next", "done"][:, -1] = True
        replay.extend(steps)


def _refuse_non_finite(steps: TensorDictBase, what: str, advice: str, *, row: str = "env") -> None:
    """Raises FloatingPointError if steps [N, T] are not finite."""
    bad = first_bad_step(steps)
    if bad is not None:
        raise FloatingPointError(
            f"Steps of {what} must be finite, but {bad.named(row=row)} of a batch of {list(steps.batch_size)}: "
            f"{advice}."
        )
