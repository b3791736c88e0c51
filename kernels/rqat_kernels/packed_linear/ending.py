"""How a program of a packed linear layer ends: its sums become outputs, alone or together with those of other programs.

Programs that share a block of rows leave float32 sums in `partial (splits, M, N)` and count themselves; the last one to
arrive adds up what all of them found, in the order of splits, so that results do not depend on who was last.

With GATED, the first N / 2 outputs are gates of the others (SwiGLU): a program has as many rows of the one kind as of
the other, and only products are written.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(block, inside, N, BLOCK: tl.constexpr, GATED: tl.constexpr):
    """The rows of the weight, N or more where there are none, which stand `inside` block number `block`."""
    if GATED:
        HALF: tl.constexpr = BLOCK // 2
        gate = block * HALF + inside % HALF
        rows = tl.where(gate < N // 2, gate + inside // HALF * (N // 2), N)
    else:
        rows = block * BLOCK + inside
    return rows


@triton.jit
def finish(
    found, y_ptr, partial_ptr, seen_ptr, bias_ptr, block, split, splits, m, M, N,
    BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr, PARTIAL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Writes the sums `found (BLOCK, ROWS)` of a block of rows of the weight; `partial` is used when PARTIAL."""
    n = rows_of(block, tl.arange(0, BLOCK), N, BLOCK, GATED)
    if PARTIAL:
        at = m.to(tl.int64)[None, :] * N + n[:, None]
        inside = (n < N)[:, None] & (m < M)[None, :]
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
            write(total, y_ptr, bias_ptr, block, n, m, M, N, BLOCK, HAS_BIAS, GATED)
    else:
        write(found, y_ptr, bias_ptr, block, n, m, M, N, BLOCK, HAS_BIAS, GATED)


@triton.jit
def write(total, y_ptr, bias_ptr, block, n, m, M, N, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr, GATED: tl.constexpr):
    """Writes whole sums `total (BLOCK, ROWS)` of the rows `n` of the weight: `y (M, N)`, or `(M, N / 2)` when GATED.

    Gates are rounded where `silu_mul` of a linear layer's output would round them.
    """
    if HAS_BIAS:
        total += tl.load(bias_ptr + tl.minimum(n, N - 1)).to(tl.float32)[:, None]
    y = total.to(y_ptr.dtype.element_ty)
    width = N
    if GATED:
        HALF: tl.constexpr = BLOCK // 2
        gate, up = tl.split(tl.permute(tl.reshape(y, [2, HALF, y.shape[1]]), (1, 2, 0)))
        wide = gate.to(tl.float32)
        y = (wide * tl.sigmoid(wide)).to(up.dtype) * up
        width = N // 2
        n = block * HALF + tl.arange(0, HALF)
    at = m.to(tl.int64)[None, :] * width + n[:, None]
    tl.store(y_ptr + at, y, mask=(n < width)[:, None] & (m < M)[None, :])
