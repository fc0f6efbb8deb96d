"""Processor, system and accelerator of a measurement."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """Name of the processor and its number of cores, such as ``"AMD EPYC, 2 cores"``."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def machine(device: torch.device) -> dict[str, str]:
    """Processor, system and, where it is used, the accelerator."""
    entries = {"processor": processor(), "system": f"{platform.system()} {platform.release()}"}
    if device.type == "cuda":
        entries["accelerator"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return entries
