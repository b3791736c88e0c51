"""How a program of a packed linear layer ends: its sums become outputs, alone or together with those of other programs.

Programs that share a block of rows leave float32 sums in `partial (splits, M, N)` and count themselves; the last one to
arrive adds up what all of them found, in the order of splits, so that results do not depend on who was last. That
spares the launch of a second kernel. Counters are zero before and after.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COUNTERS = 1 << 18
"""Counters of a device. Launches take theirs in turn, so that launches of several streams do not share any."""

_counters: dict[torch.device, Tensor] = {}
_taken: dict[torch.device, int] = {}


def zero_counters(device: torch.device, count: int) -> Tensor:
    """`count` int32 zeros, which `finish` leaves as zeros."""
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


@triton.jit
def finish(
    found, y_ptr, partial_ptr, seen_ptr, bias_ptr, block, split, splits, n, m, M, N,
    HAS_BIAS: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Writes the sums `found (BLOCK, ROWS)` of rows `n` of the weight and `m` of x; `partial` is used when PARTIAL."""
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    inside = (n < N)[:, None] & (m < M)[None, :]
    if PARTIAL:
        size = tl.full([], 1, tl.int64) * M * N
        tl.store(partial_ptr + split * size + at, found, mask=inside)
        # All threads' sums are written before one thread counts the program; the count orders them for the last one.
        tl.debug_barrier()
        seen = tl.atomic_add(seen_ptr + block, 1, sem="acq_rel")
        if seen == splits - 1:
            tl.store(seen_ptr + block, 0)
            total = tl.zeros_like(found)
            for part in range(splits):
                total += tl.load(partial_ptr + part * size + at, mask=inside, other=0.0, cache_modifier=".cg")
            if HAS_BIAS:
                total += tl.load(bias_ptr + tl.minimum(n, N - 1)).to(tl.float32)[:, None]
            tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        if HAS_BIAS:
            found += tl.load(bias_ptr + tl.minimum(n, N - 1)).to(tl.float32)[:, None]
        tl.store(y_ptr + at, found.to(y_ptr.dtype.element_ty), mask=inside)
