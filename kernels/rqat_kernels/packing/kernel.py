"""Planes to a dense matrix in one pass, and the decoding of planes that other kernels share.

    w_hat[o, k] = (q[o, k] - z[g, o]) * s[g, o]        in float32, rounded once

`decode` leaves codes in the shape in which tensor cores take them. A 16-bit float whose exponent makes its last place 1
is `OFFSET + field` when the field is or-ed into its fraction: 128 in bfloat16 (0x4300), 1024 in float16 (0x6400). So
one `lop3` per pair of weights turns fields into floats `OFFSET + F q`, where F = 4**i for a field i fields up.
Shifts of 0, 2, 8 and 10 bits bring both planes of a group of 128 to the same i, 0 or 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .planes import EXTRA_BIT, PackedWeight

SHIFTS = (0, 2, 0, 2, 8, 10, 8, 10)
FACTORS = (1, 1, 16, 16, 1, 1, 16, 16)

ROWS = 32
"""Rows of a program."""


@triton.constexpr_function
def shift_of(bits, plane):
    """By how much words are shifted to the right for a plane."""
    return 4 * plane if bits == 4 else SHIFTS[plane]


@triton.constexpr_function
def factor_of(bits, plane):
    """F of a plane."""
    return 1 if bits == 4 else FACTORS[plane]


@triton.constexpr_function
def extra_shift_of(plane, half):
    """By how much words of high bits are shifted to the right, so that the bit stands above its plane's field."""
    place = 2 if FACTORS[plane] == 1 else 6
    return EXTRA_BIT[plane] + 8 * half - place


@triton.constexpr_function
def extra_place_of(plane, half):
    """Which bit of a word of high bits belongs to a plane."""
    return EXTRA_BIT[plane] + 8 * half


@triton.constexpr_function
def offset_of(dtype):
    """OFFSET of a type."""
    return 1024 if dtype == tl.float16 else 128


@triton.constexpr_function
def decode_asm(shift, mask, magic):
    """PTX for a pair of words: `(word >> shift) & mask | magic`."""
    move = f"shr.u32 t, $1, {shift};" if shift else "mov.b32 t, $1;"
    return f"{{.reg .b32 t; {move} lop3.b32 $0, t, {mask * 0x10001}, {magic * 0x10001}, 0xEA;}}"


@triton.constexpr_function
def decode_with_extra_asm(shift, mask, extra_shift, extra_mask, magic):
    """The same, with a field of another pair of words: `... | (extra >> extra_shift) & extra_mask`."""
    move = f"shr.u32 t, $1, {shift};" if shift else "mov.b32 t, $1;"
    by = abs(extra_shift)
    there = f"{'shr.u32' if extra_shift > 0 else 'shl.b32'} u, $2, {by};" if by else "mov.b32 u, $2;"
    low = f"lop3.b32 t, t, {mask * 0x10001}, {magic * 0x10001}, 0xEA;"
    return f"{{.reg .b32 t, u; {move} {there} {low} lop3.b32 $0, u, {extra_mask * 0x10001}, t, 0xEA;}}"


@triton.jit
def decode(
    words, extra, BITS: tl.constexpr, plane: tl.constexpr, half: tl.constexpr, DTYPE: tl.constexpr,
    USE_ASM: tl.constexpr,
):  # fmt: skip
    """`OFFSET + F q` in DTYPE for a plane of a tile of words; `extra` is read when BITS is 3."""
    SHIFT: tl.constexpr = shift_of(BITS, plane)
    FACTOR: tl.constexpr = factor_of(BITS, plane)
    MASK: tl.constexpr = ((1 << (2 if BITS == 3 else BITS)) - 1) * FACTOR
    EXTRA_SHIFT: tl.constexpr = extra_shift_of(plane if BITS == 3 else 0, half)
    OFFSET: tl.constexpr = offset_of(DTYPE)
    if USE_ASM:
        MAGIC: tl.constexpr = 0x4300 if OFFSET == 128 else 0x6400
        if BITS == 3:
            WITH_EXTRA: tl.constexpr = decode_with_extra_asm(SHIFT, MASK, EXTRA_SHIFT, 4 * FACTOR, MAGIC)
            pairs = tl.inline_asm_elementwise(
                WITH_EXTRA, "=r,r,r", [words, extra], dtype=tl.int16, is_pure=True, pack=2
            )
        else:
            PLAIN: tl.constexpr = decode_asm(SHIFT, MASK, MAGIC)
            pairs = tl.inline_asm_elementwise(PLAIN, "=r,r", [words], dtype=tl.int16, is_pure=True, pack=2)
        return pairs.to(DTYPE, bitcast=True)
    field = (words.to(tl.int32) >> SHIFT) & MASK
    if BITS == 3:
        wide = extra.to(tl.int32)
        if EXTRA_SHIFT >= 0:
            field |= (wide >> EXTRA_SHIFT) & (4 * FACTOR)
        else:
            field |= (wide << (-EXTRA_SHIFT)) & (4 * FACTOR)
    return (field + OFFSET).to(DTYPE)


@triton.constexpr_function
def center_asm(dtype, with_scale=False):
    """PTX for a pair of fields: `field - OFFSET - F z`, the first difference exact; that times `s / F` with a scale.

    Products are added to minus nothing: compute capability 8.0 has none of pairs of bfloat16 alone.
    """
    kind, one, minus, offset = (
        ("f16x2", 0x3C00, 0xBC00, 0xE400) if dtype == tl.float16 else ("bf16x2", 0x3F80, 0xBF80, 0xC300)
    )
    centered = "t" if with_scale else "$0"
    product = f"fma.rn.{kind} $0, t, $3, no;" if with_scale else ""
    return (
        f"{{.reg .b32 one, minus, off, t, no; mov.b32 one, {one * 0x10001}; mov.b32 minus, {minus * 0x10001}; "
        f"mov.b32 off, {offset * 0x10001}; mov.b32 no, 0x80008000; fma.rn.{kind} t, $1, one, off; "
        f"fma.rn.{kind} {centered}, $2, minus, t; {product}}}"
    )


@triton.jit
def center(fields, zeros, DTYPE: tl.constexpr, USE_ASM: tl.constexpr):
    """`F (q - z)` in DTYPE of decoded fields and `zeros = F z`, which broadcasts to their shape."""
    OFFSET: tl.constexpr = offset_of(DTYPE)
    if USE_ASM:
        ASM: tl.constexpr = center_asm(DTYPE)
        same = tl.broadcast_to(zeros.to(DTYPE), fields.shape)
        pairs = tl.inline_asm_elementwise(ASM, "=r,r,r", [fields, same], dtype=tl.int16, is_pure=True, pack=2)
        return pairs.to(DTYPE, bitcast=True)
    return (fields.to(tl.float32) - OFFSET - zeros).to(DTYPE)


@triton.jit
def rotated(words, by, USE_ASM: tl.constexpr):
    """Pairs of words, rotated to the right by `by` bits, which broadcasts to the shape of words.

    Where `by` is not a constant it must have been loaded: with a scalar that was computed, Triton decodes words before
    they are in the layout that tensor cores take.
    """
    by = tl.broadcast_to(by, words.shape)
    if USE_ASM:
        ASM: tl.constexpr = "shf.r.wrap.b32 $0, $1, $1, $2;"
        return tl.inline_asm_elementwise(ASM, "=r,r,r,r", [words, by], dtype=tl.int16, is_pure=True, pack=2)
    wide = words.to(tl.int32) & 0xFFFF
    return ((wide >> (by & 15)) | (wide << (16 - (by & 15)))).to(tl.int16)


@triton.jit
def scaled(fields, zeros, scales, DTYPE: tl.constexpr, USE_ASM: tl.constexpr):
    """`(q - z) s` in DTYPE of decoded fields; `zeros = F z` and `scales = s / F` broadcast to their shape."""
    OFFSET: tl.constexpr = offset_of(DTYPE)
    if USE_ASM:
        ASM: tl.constexpr = center_asm(DTYPE, with_scale=True)
        zeros = tl.broadcast_to(zeros.to(DTYPE), fields.shape)
        scales = tl.broadcast_to(scales.to(DTYPE), fields.shape)
        pairs = tl.inline_asm_elementwise(
            ASM, "=r,r,r,r", [fields, zeros, scales], dtype=tl.int16, is_pure=True, pack=2
        )
        return pairs.to(DTYPE, bitcast=True)
    return ((fields.to(tl.float32) - OFFSET - zeros) * scales).to(DTYPE)


@triton.jit
def params_at(params_ptr, index, FULL: tl.constexpr, HALF: tl.constexpr):
    """Scale and zero point, float32, number `index`: pairs of float32 (FULL), float16 (HALF) or bfloat16."""
    if FULL:
        scale = tl.load(params_ptr + index * 2).to(tl.float32, bitcast=True)
        zero = tl.load(params_ptr + index * 2 + 1).to(tl.float32, bitcast=True)
    else:
        pair = tl.load(params_ptr + index)
        if HALF:
            scale = (pair & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            zero = (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        else:
            scale = (pair << 16).to(tl.float32, bitcast=True)
            zero = (pair & -65536).to(tl.float32, bitcast=True)
    return scale, zero


@triton.jit
def _dequantize(
    words_ptr, extra_ptr, params_ptr, dense_ptr, rows, width, slabs, group,
    BITS: tl.constexpr, TILED: tl.constexpr, FULL: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    WORDS: tl.constexpr = 128 if BITS == 4 else 64
    WIDE: tl.constexpr = 128 if BITS == 4 else (32 if BITS == 3 else 64)
    HALVES: tl.constexpr = 2 if BITS == 3 else 1
    PLANES: tl.constexpr = 4 if BITS == 4 else 8
    slab = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = tl.minimum(row, rows - 1).to(tl.int64)
    column = tl.arange(0, WIDE)
    words_at = words_ptr + inside[:, None] * (slabs * WORDS) + slab * WORDS + column[None, :]
    extra = tl.load(words_at)
    if BITS == 3:
        extra = tl.load(extra_ptr + inside[:, None] * (slabs * 32) + slab * 32 + column[None, :])
    for half in tl.static_range(HALVES):
        words = tl.load(words_at + half * WIDE)
        for plane in tl.static_range(PLANES):
            k = slab * 512 + plane * (512 // PLANES) + half * WIDE + column
            field = (words.to(tl.int32) >> (4 * plane if BITS == 4 else 2 * plane)) & (15 if BITS == 4 else 3)
            if BITS == 3:
                field |= ((extra.to(tl.int32) >> extra_place_of(plane, half)) & 1) << 2
            if TILED:
                tile = slab * 4 + plane * 4 // PLANES
                scale, zero = params_at(params_ptr, tile * rows + inside, FULL, HALF)
                dense = (field.to(tl.float32) - zero[:, None]) * scale[:, None]
            else:
                index = (tl.minimum(k, width - 1) // group)[None, :] * rows + inside[:, None]
                scale, zero = params_at(params_ptr, index, FULL, HALF)
                dense = (field.to(tl.float32) - zero) * scale
            at = dense_ptr + inside[:, None] * width + k[None, :]
            tl.store(at, dense.to(dense_ptr.dtype.element_ty), mask=(row < rows)[:, None] & (k < width)[None, :])


def params_of(weight: PackedWeight) -> tuple[Tensor, bool, bool]:
    """Scales and zero points as int32, and what `params_at` has to know: FULL and HALF."""
    return (
        weight.params.view(torch.int32),
        weight.params.dtype == torch.float32,
        weight.params.dtype == torch.float16,
    )


def dequantize(weight: PackedWeight, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """See `dequantize_packed`; `out (O, I)` contiguous is written when given."""
    rows, width = weight.out_features, weight.in_features
    dense = torch.empty((rows, width), dtype=dtype, device=weight.device) if out is None else out
    if dense.numel() == 0:
        return dense
    params, full, half = params_of(weight)
    extra = weight.words if weight.extra is None else weight.extra
    slabs = weight.padded // 512
    grid = (slabs, triton.cdiv(rows, ROWS))
    with torch.cuda.device_of(dense):
        _dequantize[grid](
            weight.words, extra, params, dense, rows, width, slabs, weight.group,
            BITS=weight.bits, TILED=weight.tiled, FULL=full, HALF=half, ROWS=ROWS, num_warps=4,
        )  # fmt: skip
    return dense
