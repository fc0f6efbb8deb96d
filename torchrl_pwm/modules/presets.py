"""The published model sizes."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["5M", "19M", "48M", "317M"]

# The size names count TD-MPC2's whole model, of which the world model is about a third.
PRESETS: dict[str, dict[str, Any]] = {
    "5M": {"latent_dim": 512, "encoder_units": (256,), "units": (512, 512)},
    "19M": {"latent_dim": 512, "encoder_units": (1024, 1024), "units": (1024, 1024)},
    "48M": {"latent_dim": 768, "encoder_units": (1792, 1792, 1792), "units": (1792, 1792)},
    "317M": {"latent_dim": 1376, "encoder_units": (4096, 4096, 4096, 4096), "units": (4096, 4096)},
}


def preset_sizes(preset: str, num_tasks: int) -> dict[str, Any]:
    """The sizes of a published model; its task embedding has 64 entries up to 30 tasks, 96 beyond and for 317M.

    Raises:
        ValueError: if the preset is unknown.
    """
    if preset not in PRESETS:
        raise ValueError(f"Unknown preset {preset!r}: expected one of {', '.join(PRESETS)}.")
    task_dim = 0 if num_tasks == 0 else 64 if num_tasks <= 30 and preset != "317M" else 96
    return {**PRESETS[preset], "num_tasks": num_tasks, "task_dim": task_dim}
