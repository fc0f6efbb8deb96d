"""Differentiable simulators as batched TorchRL envs.

Every name is imported on first use, so that this folder loads without a simulator installed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
