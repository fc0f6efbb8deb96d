"""PWM (policy learning with multi-task world models) as TorchRL components.

Every public name is imported on first use, so that ``import torchrl_pwm`` is quick and needs none of the
optional packages.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return __all__.copy()
