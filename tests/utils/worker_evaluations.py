"""Evaluations for worker processes, in a module that imports little."""

from __future__ import annotations

import os
import time
from pathlib import Path


def size(snapshot) -> dict[str, float]:
    """What is evaluated: the policy's size. The first snapshot takes longest, so that later ones are done before it."""
    time.sleep(0.5 if snapshot["number"] == 0 else 0.0)
    return {"size": float(sum(weight.double().square().sum() for weight in snapshot["weights"].values()))}


def fail(snapshot) -> dict[str, float]:
    raise ValueError(f"the simulator of snapshot {snapshot['number']} diverged")


def die(snapshot) -> dict[str, float]:
    os._exit(1)


def stall(snapshot) -> dict[str, float]:
    Path(snapshot["file"]).touch()
    time.sleep(600)
    return {}
