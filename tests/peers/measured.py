"""What a script that quantizes in an environment of its own is given, and what it tells: the standard library alone.

It runs as `python quantize_PEER.py JOB.json`. The job says which model, which token ids, how many bits and into which
folder. A line `RESULT` with a JSON object tells CPU and wall seconds of quantizing alone, without imports, loading and
saving, and the peak of the process's memory until then.
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


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


@contextmanager
def measured(result: dict[str, Any]) -> Iterator[None]:
    """Puts into `result` what happens inside: `cpu_s` of all threads, `wall_s`, `peak_bytes` of the whole process."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    result["cpu_s"] = round(time.process_time() - cpu, 1)
    result["wall_s"] = round(time.perf_counter() - wall, 1)
    result["peak_bytes"] = peak_bytes()


def tell(result: dict[str, Any]) -> None:
    """Prints the result where `ptq_vs_peers.py` looks for it."""
    print("\nRESULT " + json.dumps(result), flush=True)
