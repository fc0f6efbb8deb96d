"""Imagined rollouts that go on where those of the update before ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor

from torchrl_pwm.objectives.pwm import PWMLoss

__all__ = ["RolloutEnds"]


class RolloutEnds:
    """The latents [B, D] and tasks [B] where the rollouts of an update ended, and which of them may go on.

    Args:
        loss: whose rollouts they are.
        chance: of each start state to give way to the end in its place.
    """

    def __init__(self, loss: PWMLoss, chance: float) -> None:
        self.loss, self.chance = loss, chance
        self.kept: TensorDictBase | None = None  # latent, task where there is one, going

    def make_room(self, states: TensorDictBase) -> None:
        """Buffers for as many rollouts as there are start states [B]; on the host, before an update is captured."""
        if self.kept is None or self.kept.shape != states.shape:
            starts = self._starts(states)
            none = torch.zeros(states.shape, dtype=torch.bool, device=starts["latent"].device)
            self.kept = TensorDict({**starts, "going": none}, states.shape).clone()

    def mixed_with(self, states: TensorDictBase) -> TensorDictBase:
        """Start states [B] as latents, and in place of some of them ends."""
        kept, keys = self._room(), self.loss.tensor_keys
        going = kept["going"]
        going = going & (torch.rand(going.shape, device=going.device) < self.chance)
        mixed = TensorDict({}, states.batch_size)
        for name, entry in self._starts(states).items():
            where = going if entry.ndim == 1 else going.unsqueeze(-1)
            mixed.set(getattr(keys, name), torch.where(where, kept[name].to(entry), entry))
        return mixed

    @torch.no_grad()
    def keep(self, rollout: TensorDictBase, open_: Tensor) -> None:
        """Notes where a rollout [B, H] ended, if the flag says so. An episode may have ended with it."""
        kept, keys, last = self._room(), self.loss.tensor_keys, rollout[:, -1]
        found = {"latent": last[unravel_key(("next", keys.latent))]}
        if "task" in kept.keys():  # noqa: SIM118
            found["task"] = last[unravel_key(("next", keys.task))]
        found["going"] = found["latent"].isfinite().all(-1)
        survival = rollout.get(unravel_key(("next", keys.continuation)), None)
        if survival is not None:
            drawn = torch.rand(kept.shape, device=survival.device)
            found["going"] = found["going"] & (drawn < survival.squeeze(-1).prod(-1))
        for name, entry in found.items():
            kept[name].copy_(torch.where(open_, entry.to(kept[name]), kept[name]))

    def state_dict(self) -> dict[str, Any]:
        return {} if self.kept is None else self.kept.clone().to_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes the ends to where the networks are: a checkpoint is read on the CPU."""
        entries, place = dict(state_dict), next(self.loss.parameters()).device
        self.kept = TensorDict(entries, entries["going"].shape, device=place) if entries else None

    def _starts(self, states: TensorDictBase) -> dict[str, Tensor]:
        keys, starts = self.loss.tensor_keys, self.loss.start_latents(states)
        entries = {"latent": starts[keys.latent], "task": starts.get(keys.task, None)}
        return {name: entry for name, entry in entries.items() if entry is not None}

    def _room(self) -> TensorDictBase:
        assert self.kept is not None
        return self.kept
