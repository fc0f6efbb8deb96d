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
