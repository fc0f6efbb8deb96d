"""Environments: the MT30 and MT80 tasks, the world-model transform and the imagined env.

Every name is imported on first use, so that this folder loads without a simulator installed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
