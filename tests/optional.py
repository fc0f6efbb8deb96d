"""Packages that torchrl_pwm does without until they are needed."""

from __future__ import annotations

OPTIONAL = (
    "dflex",
    "dm_control",
    "gym",
    "gymnasium",
    "h5py",
    "huggingface_hub",
    "hydra",
    "isaacgym",
    "isaacgymenvs",
    "matplotlib",
    "metaworld",
    "minari",
    "mujoco",
    "newton",
    "omegaconf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "ray",
    "rewarped",
    "rliable",
    "submitit",
    "tensorboard",
    "wandb",
    "warp",
)


def is_optional(error: BaseException) -> bool:
    """Whether ``error`` says that one of them, or an extra, is not installed."""
    return isinstance(error, ImportError) and (
        (error.name or "").split(".")[0] in OPTIONAL or "torchrl-pwm[" in str(error)
    )
