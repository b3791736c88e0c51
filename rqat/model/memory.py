"""How much memory is free. Imports torch only where a GPU is asked about."""

from __future__ import annotations

from pathlib import Path


def available_bytes(device: str = "cpu") -> int | None:
    """Memory that is free for use on a device; None where the system does not say."""
    if device != "cpu":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
