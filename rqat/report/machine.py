"""What a run is done on and with: the machine, and the packages that can change a result."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "trl", "accelerate", "datasets", "numpy"),
    *("lm_eval", "math-verify", "compressed-tensors", "triton", "gptqmodel"),
)


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result; those that are not installed are left out."""
    found = {package: _version(package) for package in PACKAGES}
    return {"python": platform.python_version()} | {package: its for package, its in found.items() if its}


@cache
def _version(package: str) -> str:
    """Of a package as this process has found it; "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def machine(device: str) -> dict[str, Any]:
    """What the run was done on."""
    facts: dict[str, Any] = {"system": platform.system(), "processor": _processor(), "cpus": os.cpu_count()}
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
