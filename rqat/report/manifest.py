"""manifest.json of a run: every step with its facts and fingerprint, the versions of packages, the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run_files import RunFiles

PACKAGES = (
    *("torch", "transformers", "tokenizers", "safetensors", "trl", "accelerate", "datasets", "numpy"),
    *("lm_eval", "math-verify", "compressed-tensors", "triton", "gptqmodel"),
)


def manifest_of(run: RunFiles) -> dict[str, Any]:
    """Everything needed to tell how a run came about; "told" is what was known of the plan before it ran."""
    return {
        "name": run.name,
        "scheme": run.scheme,
        "rqat": run.plan["rqat"],
        "recipe": run.recipe,
        "told": run.plan["told"],
        "steps": [step.manifest for step in run.steps],
        "seconds": round(sum(step.seconds for step in run.steps), 3),
        "packages": run.plan["packages"],
        "machine": run.plan["machine"],
    }


def versions() -> dict[str, str]:
    """Versions of the packages that can change a result; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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
