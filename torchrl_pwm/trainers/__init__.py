"""Trainers: world-model training, policy extraction, online PWM, SHAC and TD-MPC2, one visible loop each.

Every name is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
