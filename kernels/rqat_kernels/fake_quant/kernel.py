"""Fake quantization of activations in Triton: the span of each token or group, and its values on the grid, in one pass.

    s = (max(x, 0) - min(x, 0)) / Q,   z = round(-min(x, 0) / s),   x_hat = (clamp(round(x / s) + z, 0, Q) - z) * s

or symmetric, see `reference.py`. A program holds whole rows in registers: it reads and writes each number once, 4 bytes
in 16-bit types. Weights need no kernel of their own: they go through those of `grid` and `latent_step`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..grid.kernel import code_of, round_half_even
from . import reference

TILE = 2048
"""Elements per program, unless one row has more."""

WIDEST = 32768
"""Longest row: a program holds all of it in registers."""

SMALLEST_SCALE = tl.constexpr(reference.SMALLEST_SCALE)


@triton.jit
def _activations(
    x, out, R, MAX_CODE: tl.constexpr, SYMMETRIC: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    offsets = row[:, None] * GROUP + column[None, :]
    mask = (row < R)[:, None]
    if GROUP != COLUMNS:
        mask = mask & (column < GROUP)[None, :]
    value = tl.load(x + offsets, mask=mask, other=0).to(tl.float32)
    middle: tl.constexpr = (MAX_CODE + 1) // 2
    if SYMMETRIC:
        scale = tl.div_rn(tl.max(tl.abs(value), axis=1), middle - 1.0)
        scale = tl.where(scale > SMALLEST_SCALE, scale, 1.0)
        zero = tl.full([ROWS], middle, tl.float32)
    else:
        # Elements masked out are zero, and zero is always in the span.
        low, high = tl.minimum(tl.min(value, axis=1), 0.0), tl.maximum(tl.max(value, axis=1), 0.0)
        scale = tl.div_rn(high - low, MAX_CODE + 0.0)
        scale = tl.where(scale > SMALLEST_SCALE, scale, 1.0)
        zero = round_half_even(tl.div_rn(-low, scale))
    s, z = scale[:, None], zero[:, None]
    tl.store(out + offsets, ((code_of(value, s, z, MAX_CODE) - z) * s).to(out.dtype.element_ty), mask=mask)


def tile(group: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its number of warps."""
    columns = triton.next_power_of_2(group)
    rows = max(1, TILE // columns)
    return rows, columns, min(16, max(4, rows * columns // 512))


def fake_quant_activations(x: Tensor, bits: int, group: int | None = None, *, symmetric: bool = False) -> Tensor:
    """As the reference, for rows up to `WIDEST`, in float32, bfloat16 or float16."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    width = group or x.shape[-1]
    rows, columns, warps = tile(width)
    count = x.numel() // width
    with torch.cuda.device_of(x):
        _activations[(triton.cdiv(count, rows),)](
            x.contiguous(), out, count, 2**bits - 1, symmetric, width, rows, columns, num_warps=warps
        )
    return out
