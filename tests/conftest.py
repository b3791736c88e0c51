"""Settings of every test: one thread, no network, and data that stands beside the repository where it exists."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Two busy BLAS threads on two cores wait for each other longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Before anything imports triton, and without importing torch: is there a GPU?
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Shells start what runs in the background with interrupts ignored, and children inherit it; tests of Ctrl-C need them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Child processes find the packages of this checkout, installed or not.
_ROOT = Path(__file__).parents[1]
_PATHS = [str(_ROOT / name) for name in ("", "plugins", "kernels")]
os.environ["PYTHONPATH"] = os.pathsep.join([*_PATHS, *filter(None, [os.environ.get("PYTHONPATH")])])

_BESIDE = Path(__file__).parents[2] / "shared" / "data"
if "RQAT_DATA" not in os.environ and _BESIDE.is_dir():
    os.environ["RQAT_DATA"] = str(_BESIDE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (`-n`), files with slow tests come first, so that none is left when all others are done."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
