"""Offline data: episodes on disk, their replay buffer, conversion of published shards, and collection.

Every name is imported on first use, so that this folder loads without a simulator or hub client installed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
