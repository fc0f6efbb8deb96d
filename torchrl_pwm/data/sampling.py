"""State of the draws of a replay buffer, as a part of a checkpoint."""

from __future__ import annotations

from typing import Any

from torchrl.data import ReplayBuffer

from torchrl_pwm._utils.torchrl_private import buffer_generator, buffer_prefetches
from torchrl_pwm.data.mixture import ReplayMixture
from torchrl_pwm.data.replay import TDMPC2ExperienceReplay

__all__ = ["ReplaySampling"]


class ReplaySampling:
    """Where the draws of a replay buffer stand; the data are not saved.

    Raises:
        ValueError: if draws are to be saved that cannot be: TorchRL's buffers hold batches that they read ahead, which
            only :class:`~torchrl_pwm.TDMPC2ExperienceReplay` can save without the data.
    """

    def __init__(self, replay_buffer: ReplayBuffer, *, saves: bool = False) -> None:
        self.replay_buffer = replay_buffer
        self._saves_itself = isinstance(replay_buffer, (TDMPC2ExperienceReplay, ReplayMixture))
        if saves and not self._saves_itself and buffer_prefetches(replay_buffer):
            raise ValueError(
                f"A trainer with a save_folder needs a {type(replay_buffer).__name__} without prefetch: the batches "
                "read ahead are not saved, and a resumed run would skip them. Leave prefetch out, or use "
                "TDMPC2ExperienceReplay."
            )

    def state_dict(self) -> dict[str, Any]:
        buffer = self.replay_buffer
        if self._saves_itself:
            return {"buffer": buffer.state_dict()}
        generator = buffer_generator(buffer)
        return {
            "sampler": buffer.sampler.state_dict(),
            "transform": buffer.transform.state_dict(),
            # Without one of its own the buffer draws from torch's global generator, which is saved beside this.
            "generator": None if generator is None else generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        buffer = self.replay_buffer
        if ("buffer" in state_dict) != self._saves_itself:
            raise ValueError(
                f"The checkpoint was saved with another kind of replay buffer, found {type(buffer).__name__}: resume "
                "with the kind of buffer that the run began with."
            )
        if self._saves_itself:
            buffer.load_state_dict(state_dict["buffer"])
            return
        generator = buffer_generator(buffer)
        if (generator is None) != (state_dict["generator"] is None):
            raise ValueError(
                "The checkpoint and the replay buffer must agree on whether the buffer has a generator of its own; "
                f"found {'none' if generator is None else 'one'} in the buffer. Build it as the run began."
            )
        buffer.sampler.load_state_dict(state_dict["sampler"])
        buffer.transform.load_state_dict(state_dict["transform"])
        if generator is not None:
            generator.set_state(state_dict["generator"])
