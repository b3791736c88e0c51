"""Counters by which the programs of a launch find out who of them is the last.

The last one adds up what all of them left, which spares the launch of a second kernel. Counters are zero before and
after.
"""

from __future__ import annotations

import torch
from torch import Tensor

COUNTERS = 1 << 18
"""Counters of a device. Launches take theirs in turn, so that launches of several streams do not share any."""

_counters: dict[torch.device, Tensor] = {}
_taken: dict[torch.device, int] = {}


def zero_counters(device: torch.device, count: int) -> Tensor:
    """`count` int32 zeros, which a launch leaves as zeros."""
    counters = _counters.get(device)
    if counters is None or count > COUNTERS:
        fresh = torch.zeros(max(count, COUNTERS), dtype=torch.int32, device=device)
        if count > COUNTERS or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            # Zeros that a graph writes are there when it runs, and only for its own kernels.
            return fresh[:count]
        counters = _counters[device] = fresh
    # Whole lines, so that pointers are always aligned, as the compiled kernel takes them to be.
    count = -(-count // 32) * 32
    start = _taken.get(device, 0)
    if start + count > COUNTERS:
        start = 0
    _taken[device] = start + count
    return counters[start : start + count]
