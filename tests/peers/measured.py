"""What a script that quantizes is given, and what it tells: the standard library alone, and torch on a GPU.

It runs as `python quantize_PEER.py JOB.json`. The job says which model, which token ids, how many bits, on which device
and into which folder. A line `RESULT` with a JSON object tells CPU and wall seconds of quantizing alone, without
imports, loading and saving, and the peak of memory until then: of the process, and on a GPU of its tensors there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def job() -> dict[str, Any]:
    """The job given on the command line; `tokens` are lists of token ids, all of one length."""
    found: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    found["tokens"] = json.loads(Path(found["tokens"]).read_text())
    return found


def host_bytes() -> int:
    """The largest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def device_bytes(device: str) -> int:
    """The most memory that tensors of this process have had on a GPU, once it has done everything it was given."""
    import torch

    torch.cuda.synchronize(device)  # the first time this also starts CUDA, which is no part of quantizing
    return int(torch.cuda.max_memory_allocated(device))


@contextmanager
def measured(result: dict[str, Any], device: str) -> Iterator[None]:
    """Puts into `result` what happens inside: `cpu_s` of all threads, `wall_s`, and peaks of the whole process.

    `peak_bytes` is the memory of the device: on a CPU the process's, and on a GPU that of its tensors there, with
    `host_bytes` beside it.
    """
    on_gpu = device != "cpu"
    if on_gpu:
        device_bytes(device)
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    peaks = {"peak_bytes": device_bytes(device), "host_bytes": host_bytes()} if on_gpu else {"peak_bytes": host_bytes()}
    result["cpu_s"] = round(time.process_time() - cpu, 1)
    result["wall_s"] = round(time.perf_counter() - wall, 1)
    result |= peaks


def tell(result: dict[str, Any]) -> None:
    """Prints the result where `ptq_vs_peers.py` looks for it."""
    print("\nRESULT " + json.dumps(result), flush=True)
