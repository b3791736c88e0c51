"""`rqat doctor`: what this machine has, and what is missing for what."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from ..figures import size
from . import display, options

PACKAGES = {
    "torch": "everything that touches a model",
    "transformers": "loading and running models",
    "safetensors": "checkpoints",
    "trl": "training (kd, sft, grpo)",
    "accelerate": "training",
    "datasets": "training and data from the hub",
    "lm-eval": "lm-eval tasks in `rqat eval`",
    "math-verify": "grading of mathematical answers",
    "compressed-tensors": "loading exported checkpoints in transformers",
    "triton": "fused kernels on CUDA; without it the reference runs",
    "gptqmodel": "checking exported GPTQ checkpoints against another loader (extra `peers`)",
    "vllm": "serving and fast generation on CUDA (extra `vllm`)",
}
OPTIONAL = frozenset({"triton", "gptqmodel", "vllm"})


def doctor(
    context: typer.Context,
    as_json: options.Json = False,
) -> None:
    """Show versions, devices, and what is missing for what."""
    found: dict[str, Any] = {
        "rqat": metadata_version("rqat") or _own_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "packages": {name: metadata_version(name) for name in PACKAGES},
        "devices": _devices(),
        "hub_cache": _hub_cache(),
        "offline": bool(os.environ.get("HF_HUB_OFFLINE")),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "broken_plugins": {b.name: b.error for b in context.obj.registry.broken},
    }
    if as_json:
        display.print_json(found)
        return
    memory = size(found["memory_bytes"]) if found["memory_bytes"] else "unknown"
    typer.echo(f"rqat {found['rqat']}, Python {found['python']}, {found['platform']}")
    typer.echo(f"{found['cpus']} CPUs, {memory} memory, {size(found['free_disk_bytes'])} free here")
    for device in found["devices"] or [{"name": "no CUDA device: models run on the CPU in float32"}]:
        free = f", {size(device['memory_bytes'])}" if "memory_bytes" in device else ""
        typer.echo(f"device: {device['name']}{free}")
    typer.echo(f"hub cache: {found['hub_cache']}{' (offline)' if found['offline'] else ''}")
    rows = []
    for name, purpose in PACKAGES.items():
        missing = "missing, optional" if name in OPTIONAL else "MISSING"
        rows.append((name, found["packages"][name] or missing, purpose))
    display.table(("package", "version", "needed for"), rows)
    missing_now = [name for name in PACKAGES if name not in OPTIONAL and not found["packages"][name]]
    if missing_now:
        typer.echo(f"Missing: {', '.join(missing_now)}. Install with: pip install {' '.join(missing_now)}")
    for name, reason in found["broken_plugins"].items():
        typer.echo(f"broken plugin {name}: {reason}")
    if not missing_now and not found["broken_plugins"]:
        typer.echo("All that rqat needs is here.")


def metadata_version(package: str) -> str | None:
    """Version of an installed distribution; None when it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _own_version() -> str:
    from .. import __version__

    return __version__


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not on every platform
        return None


def _hub_cache() -> str:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return str(Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser())


def _devices() -> list[dict[str, Any]]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": f"cuda:{index} {properties.name}",
                "memory_bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
            }
        )
    return found
