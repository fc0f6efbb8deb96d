"""What every worker process needs: imported once, by the process that they are copies of."""

from __future__ import annotations

import os

import numpy as np
import torchrl.collectors
import torchrl.data
import torchrl.envs
import torchrl.objectives  # noqa: F401

# As Python's own generator does: copies would draw the same numbers, where a simulator draws from this one.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=np.random.seed)
