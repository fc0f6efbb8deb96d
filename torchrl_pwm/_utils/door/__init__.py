"""The one door that files come in by: nothing of a file is run, or believed before it was checked."""

from torchrl_pwm._utils.door.hdf5 import check_hdf5, read_hdf5
from torchrl_pwm._utils.door.kinds import making
from torchrl_pwm._utils.door.memmaps import check_memmap
from torchrl_pwm._utils.door.pickles import Allowed
from torchrl_pwm._utils.door.records import read_json, read_yaml_text
from torchrl_pwm._utils.door.tensors import (
    check_archive,
    check_safetensors,
    is_safetensors,
    load_weights,
    pack_safetensors,
    read_safetensors,
    read_tensors,
    refuse_non_finite,
)

__all__ = [
    "Allowed",
    "check_archive",
    "check_hdf5",
    "check_memmap",
    "check_safetensors",
    "is_safetensors",
    "load_weights",
    "making",
    "pack_safetensors",
    "read_hdf5",
    "read_json",
    "read_safetensors",
    "read_tensors",
    "read_yaml_text",
    "refuse_non_finite",
]
