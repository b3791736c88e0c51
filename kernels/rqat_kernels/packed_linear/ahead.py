"""What a program of a packed linear layer does while the kernel before it still runs.

Weights do not depend on that kernel: they, their scales and their zero points are on their way to L2 while it ends.
What comes from memory only after the wait would cost a small layer a third of its time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..prefetch import to_l2


@triton.jit
def read_ahead(
    words_ptr, extra_ptr, params_ptr, row, slab, N, slabs, BITS: tl.constexpr, FULL: tl.constexpr
):  # fmt: skip
    """Sends slabs `slab` of the weight's rows `row`, two tensors of one shape, on their way to L2."""
    WORDS: tl.constexpr = 128 if BITS == 4 else 64
    at = row.to(tl.int64) * slabs + slab
    to_l2(words_ptr + at * WORDS)
    if BITS == 4:
        to_l2(words_ptr + at * WORDS + 64)
    if BITS == 3:
        to_l2(extra_ptr + at * 32)
    for tile in tl.static_range(4):
        to_l2(params_ptr + ((slab * 4 + tile) * N + row) * (2 if FULL else 1))


@triton.jit
def wait_for_x(
    words_ptr, extra_ptr, params_ptr, row, first, turns, ahead, N, slabs, BITS: tl.constexpr, FULL: tl.constexpr
):  # fmt: skip
    """Waits for the kernel before; meanwhile up to `ahead` of the `turns` slabs from `first` on are sent for."""
    for slab in range(first, tl.minimum(first + tl.minimum(turns, ahead), slabs)):
        read_ahead(words_ptr, extra_ptr, params_ptr, row, slab, N, slabs, BITS, FULL)
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()
