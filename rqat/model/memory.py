"""How much memory is free, and how much was taken. Imports torch only where a GPU is asked about."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARGIN = 1.25
"""An estimate of memory may be wrong by this factor."""

SMALL = 1 << 30
"""Bytes of an exported model and of what it was made from, so many as libraries take: up to that, both are loaded."""

KEPT = 128 << 20
"""Bytes of freed memory that a process keeps for its next tensors."""

JUDGED_AT_ONCE = 1 << 24
"""Weights whose error at the output is computed at once: sixteen bytes beside each, products and sums in float64."""

BACKWARD_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Tokens whose hidden states between all blocks are kept at once, where the whole model is passed backwards."""


def available_bytes(device: str = "cpu") -> int | None:
    """Memory that is free for use on a device; None where the system does not say."""
    if device != "cpu":
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes next
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def keep_freed() -> None:
    """Has this process reuse what it frees on the host, up to KEPT bytes, in place of handing it back each time.

    Reading a model tensor by tensor otherwise takes new pages from the system for each, a fifth of the time.
    """
    with suppress(OSError, AttributeError):  # another C library than glibc
        tune = ctypes.CDLL(None).mallopt
        for parameter, size in ((-1, KEPT), (-3, KEPT // 4)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
            tune(parameter, size)


@contextmanager
def importing() -> Iterator[None]:
    """Around a command's import of torch and what builds on it: nothing is collected meanwhile, nor ever of that.

    They make some 760,000 objects that stay. To look through them while they are being made is a fifth of their import;
    later it would take a quarter of a second for every full collection, of which each step has one, and a second at the
    process's end. Does nothing where torch is there already: its process is somebody else's, a test's or a server's.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def give_back(device: str) -> None:
    """Gives the system what earlier steps have left in this process: on a GPU, and of the host's memory."""
    gc.collect()  # what a trainer has held goes in circles
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc keeps what smaller tensors have had
        ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """The most memory this process has on a device from now on: of tensors on a GPU, else resident."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):  # what the system remembers begins anew
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    @property
    def bytes(self) -> int | None:
        """So far; None where the system does not say."""
        if self._device != "cpu":
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
            return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            return None
