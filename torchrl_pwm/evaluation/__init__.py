"""Evaluation: rollouts in the real environments, scores, summaries, plots and film strips.

Every name is imported on first use, so that this folder loads without a simulator or a plotting library.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
