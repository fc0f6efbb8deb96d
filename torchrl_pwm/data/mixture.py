"""Batches drawn from several offline replays at fixed shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_pwm.data.replay import TDMPC2ExperienceReplay

__all__ = ["ReplayMixture"]


class ReplayMixture:
    """Several :class:`~torchrl_pwm.TDMPC2ExperienceReplay` as one: a sample holds each one's own batch.

    What a policy visits in the real env is a small part of all data; mixed in at a fixed share it corrects the model
    where that policy goes. TorchRL's ``ReplayBufferEnsemble`` draws the shares at random and cannot save what it reads
    ahead.

    Args:
        replays: two or more, each with the ``batch_size`` of its share.

    Raises:
        ValueError: for none, or one without a batch size.

    Examples:
        >>> import tempfile, numpy as np
        >>> from torchrl_pwm.data import EpisodeStoreWriter, TDMPC2ExperienceReplay
        >>> root = tempfile.mkdtemp()
        >>> with EpisodeStoreWriter(root, "mt30", {"cheetah-run": 4}, row_length=50) as writer:
        ...     writer.write("cheetah-run", np.zeros((4, 51, 24)), np.zeros((4, 50, 6)), np.ones((4, 50)))
        >>> old, new = (TDMPC2ExperienceReplay(root, size, slice_len=16) for size in (3, 5))
        >>> ReplayMixture([old, new]).sample().shape
        torch.Size([8, 16])
    """

    def __init__(self, replays: Sequence[TDMPC2ExperienceReplay]) -> None:
        if not replays or any(replay.batch_size is None for replay in replays):
            raise ValueError(
                "a mixture needs replays that were given a batch_size, the number of slices each adds to a sample; "
                f"found {[replay.batch_size for replay in replays]}"
            )
        self.replays = list(replays)

    @property
    def batch_size(self) -> int:
        """Slices of a sample."""
        return sum(replay.batch_size for replay in self.replays)

    def sample(self) -> TensorDictBase:
        """A batch [B, T]: first the slices of the first replay, then those of the next."""
        return torch.cat([replay.sample() for replay in self.replays])

    def state_dict(self) -> dict[str, Any]:
        """Where the draws of each replay stand; the data are not saved."""
        return {"replays": [replay.state_dict() for replay in self.replays]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where the saved draws stood.

        Raises:
            ValueError: if it was saved with another number of replays.
        """
        states = state_dict["replays"]
        if len(states) != len(self.replays):
            raise ValueError(f"the saved mixture has {len(states)} replays, this one {len(self.replays)}")
        for replay, state in zip(self.replays, states):
            replay.load_state_dict(state)
