"""How a program of a packed linear layer ends: its sums become outputs, alone or together with those of other programs.

Programs that share a block of rows leave float32 sums in `partial (splits, M, N)` and count themselves; the last one to
arrive adds up what all of them found, in the order of splits, so that results do not depend on who was last.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
