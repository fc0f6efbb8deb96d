"""The sizes at which speed is measured: for tests of the suite, for every day, and the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torchrl_pwm.envs import MT80
from torchrl_pwm.modules.presets import PRESETS


@dataclass(frozen=True)
class Size:
    """Networks and batches.

    Args:
        networks: ``latent_dim``, ``encoder_units`` and ``units`` of the world model.
        task_dim: size of the task embedding.
        bins: of reward and values.
        actor, critic: hidden layers.
        start_states: batch of imagination and of the PWM update.
        horizon: imagined steps, and transitions of a sequence of the world-model update.
        sequences: of a world-model update, and slices of a sample.
        tdmpc2_sequences, tdmpc2_steps: sequences of a TD-MPC2 update, and their transitions.
        planner: options of the planner that differ from the published ones.
        rows_per_task: rows of 100 transitions of the data set that samples come from.
    """

    networks: dict[str, Any]
    task_dim: int = 96
    bins: int = 101
    actor: tuple[int, ...] = (400, 200, 100)
    critic: tuple[int, ...] = (400, 200)
    critics: int = 3
    start_states: int = 512
    horizon: int = 16
    sequences: int = 128
    tdmpc2_sequences: int = 128
    tdmpc2_steps: int = 3
    planner: dict[str, int] = field(default_factory=dict)
    rows_per_task: int = 125
    observation_dim: int = MT80.observation_dim
    action_dim: int = MT80.action_dim
    tasks: int = len(MT80)

    def describe(self) -> str:
        """One sentence."""
        name = next((name for name, sizes in PRESETS.items() if sizes == self.networks), "own sizes")
        return (
            f"World model {name}, {self.tasks} tasks, {self.observation_dim} observations, {self.action_dim} actions; "
            f"{self.start_states} start states, H = {self.horizon}, {self.critics} critics; {self.sequences} sequences "
            f"of {self.horizon} transitions (TD-MPC2: {self.tdmpc2_sequences} of {self.tdmpc2_steps}); float32."
        )


SIZES = {
    "tiny": Size(
        {"latent_dim": 16, "encoder_units": (16,), "units": (16, 16)},
        task_dim=4,
        bins=11,
        actor=(16,),
        critic=(16,),
        start_states=8,
        horizon=2,
        sequences=4,
        tdmpc2_sequences=4,
        planner={"iterations": 2, "num_samples": 8, "num_policy_rollouts": 2, "num_elites": 4},
        rows_per_task=1,
    ),
    "small": Size(PRESETS["5M"]),
    # MT80: 345 M transitions; published batches
    "paper": Size(PRESETS["48M"], sequences=1024, tdmpc2_sequences=1024, rows_per_task=43_125),
}
