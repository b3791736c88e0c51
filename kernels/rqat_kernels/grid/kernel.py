"""The uniform grid in Triton: codes, values, and both in one pass.

    q     = clamp(round_half_even(w / s) + z, 0, Q)
    w_hat = (q - z) * s

Every element of these formulas is rounded as torch rounds it, so codes and values equal the reference's to the bit: the
quotient is the IEEE one (see `quotient`), and nothing is contracted (no product is followed by a sum). Bytes per
weight: its own size and that of the result; the arithmetic hides behind the memory.

All sizes are seen as rows of one group each, `(R, g)` with `R = O * G`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import interpreted

TILE = 2048
"""Elements per program: with 128 threads, two loads of 16 bytes each in 16-bit types."""

SMALLEST_SCALE = tl.constexpr(2.0**-17)
LARGEST_SCALE = tl.constexpr(65280.0)

FUSES = tl.constexpr(not interpreted())
"""Whether `tl.fma` rounds once. The interpreter rounds the product too."""


@triton.jit
def round_half_even(x):
    """Nearest whole number. The sum has no bits left below one; beyond 2**22, where that fails, every code is clamped.

    Two additions are four times as fast as the conversion instruction, and the interpreter knows them.
    """
    return (x + 12582912.0) - 12582912.0


@triton.jit
def quotient(weight, scale):
    """`w / s`, rounded as IEEE division, in three instructions per weight and one division per row (it takes eighteen).

    With `y = 1/s` rounded, `a = w y` is within 1.5 units in the last place of `w/s`. A snapped `s` has 8 significant
    bits: so `w - a s` is exact, and `w/s` is at least 1/512 unit away from every midpoint between two floats, where the
    second product's error, below 2**-23 units, cannot reach. Any other scale errs by one unit, once in some 2**23. All
    this for finite weights below 2**110, above which `a` overflows; subnormal quotients may vanish.
    """
    if FUSES:
        y = tl.div_rn(1.0, scale)
        a = weight * y
        return tl.fma(tl.fma(-a, scale, weight), y, a)
    return tl.div_rn(weight, scale)


@triton.jit
def code_of(weight, scale, zero, MAX_CODE: tl.constexpr):
    """Codes in float32."""
    code = round_half_even(quotient(weight, scale)) + zero
    return tl.minimum(tl.maximum(code, 0.0), MAX_CODE)


@triton.jit
def snapped(scale):
    """`snap_scale` of float32: bfloat16's nearest, half to even, in whole numbers: the interpreter's cast truncates."""
    clamped = tl.minimum(tl.maximum(scale, SMALLEST_SCALE), LARGEST_SCALE)
    bits = clamped.to(tl.int32, bitcast=True)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits & -65536).to(tl.float32, bitcast=True)


@triton.jit
def tile_of(R, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows, offsets and mask of a program's tile, and the mask of its rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = row < R
    mask = inside[:, None]
    if GROUP % COLUMNS != 0:
        mask = mask & (column < GROUP)[None, :]
    return row, row[:, None] * GROUP + column[None, :], mask, inside


@triton.jit
def grid_scale(at, row, inside):
    """One number per row as a column in float32; one outside, so that nothing divides by zero."""
    return tl.load(at + row, mask=inside, other=1).to(tl.float32)[:, None]


@triton.jit
def _quantize(weight, scale, zero, out, R, MAX_CODE: tl.constexpr, VALUES: tl.constexpr, GROUP: tl.constexpr,
              ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Codes of weights, or with VALUES the weights they stand for."""
    row, offsets, mask, inside = tile_of(R, GROUP, ROWS, COLUMNS)
    s, z = grid_scale(scale, row, inside), grid_scale(zero, row, inside)
    q = code_of(tl.load(weight + offsets, mask=mask, other=0).to(tl.float32), s, z, MAX_CODE)
    if VALUES:
        q = (q - z) * s
    tl.store(out + offsets, q.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _dequantize(codes, scale, zero, out, R, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, offsets, mask, inside = tile_of(R, GROUP, ROWS, COLUMNS)
    s, z = grid_scale(scale, row, inside), grid_scale(zero, row, inside)
    q = tl.load(codes + offsets, mask=mask, other=0).to(tl.float32)
    tl.store(out + offsets, ((q - z) * s).to(out.dtype.element_ty), mask=mask)


def shape_of_tile(group: int) -> tuple[int, int]:
    """Rows and columns of a program's tile for groups of `group` weights."""
    columns = min(triton.next_power_of_2(group), TILE)
    return TILE // columns, columns


def _launch(kernel, source: Tensor, scale: Tensor, zero: Tensor, out: Tensor, *constants: object) -> Tensor:
    if out.numel() == 0:
        return out
    rows = scale.numel()
    group = source.numel() // rows
    per_tile, columns = shape_of_tile(group)
    where = (triton.cdiv(rows, per_tile), triton.cdiv(group, columns))
    with torch.cuda.device_of(source):
        kernel[where](
            source.contiguous(), scale.contiguous(), zero.contiguous(), out, rows, *constants, group, per_tile, columns
        )
    return out


def quantize(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """As the reference; `weight` in float32, bfloat16 or float16."""
    out = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    return _launch(_quantize, weight, scale, zero, out, max_code, False)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """As the reference; `dtype` float32, bfloat16 or float16."""
    return _launch(_dequantize, codes, scale, zero, torch.empty(codes.shape, dtype=dtype, device=codes.device))


def requantize(
    weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """As the reference; both dtypes float32, bfloat16 or float16."""
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    return _launch(_quantize, weight, scale, zero, out, max_code, True)
