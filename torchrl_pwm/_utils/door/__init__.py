"""The one door that files come in by: nothing of a file is trusted, run, or believed before it was checked."""

from torchrl_pwm._utils.door.tensors import is_safetensors, read_safetensors, read_tensors

__all__ = ["is_safetensors", "read_safetensors", "read_tensors"]
