"""Codes in int32 words, and back, in plain torch: lossless, on any device.

Every layout here is one bit stream: value `i` of a row of `n` values occupies bits `i*b` to `i*b + b - 1`, lowest bit
first, and the row is filled up with zeros to whole 32-bit words. With 3 bits, values straddle words. What the
checkpoint formats differ in is the direction of the stream and what they put into it:

    format                                  codes `(O, I)`            zero points `(O, G)`
    compressed-tensors pack-quantized       along I: (O, W)           along O: (W', G)
    GPTQ                                    along I: (W, O)           along O: (G, W'), version 1 stores z - 1
    AWQ GEMM (4 bits)                       along O: (I, W)           along O: (G, W')

with `W = ceil(n*b / 32)` words for `n` values. AWQ puts the eight values of a word in the order 0 2 4 6 1 3 5 7.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

AT_ONCE = 1 << 18
"""Values that a CPU packs at once."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours sits in nibble 0, 1, ... of a word of an AWQ GEMM checkpoint."""


def words_for(count: int, bits: int) -> int:
    """Number of 32-bit words that hold `count` values of `bits` bits."""
    return -(-count * bits // 32)


def pack(values: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Packs along one dimension.

    Args:
        values: uint8 of any shape, each below `2**bits`.
        bits: 1 to 8.
        dim: dimension of the bit stream; its size `n` becomes `words_for(n, bits)`.

    Returns:
        int32, contiguous.
    """
    rows = values.movedim(dim, -1)
    lead, count = rows.shape[:-1], rows.shape[-1]
    rows = rows.reshape(math.prod(lead), count)
    words = rows.new_empty((len(rows), -(-count // 32), bits), dtype=torch.int32)
    for part in _pieces(rows):
        some, own = rows[part], bits
        if count % 32:
            some = torch.nn.functional.pad(some, (0, -count % 32))
        flat = some.contiguous().view(-1)
        if flat.storage_offset() % 8:  # wider types cannot begin there
            flat = flat.clone()
        while own <= 4:
            flat, own = _paired(flat, own), 2 * own
        if own == 8:
            words[part] = flat.view(torch.int32).view(words[part].shape)
            continue
        # 32 values are now so many fields of eight bytes each, and fill `bits` words without a remainder.
        fields = _join(flat.view(torch.int64).clone(), own).view(len(some), -1, 4 * bits // own)
        for word in range(bits):
            words[part, :, word] = _overlapping(fields, word, own)
    return words.view(*lead, -(-count // 32) * bits)[..., : words_for(count, bits)].movedim(-1, dim).contiguous()


def unpack(words: Tensor, bits: int, count: int, dim: int = -1) -> Tensor:
    """The inverse of `pack`: uint8 values, `count` of them along `dim`; contiguous."""
    rows = words.movedim(dim, -1)
    lead = rows.shape[:-1]
    rows = rows.reshape(math.prod(lead), rows.shape[-1])
    blocks = -(-rows.shape[1] // bits)
    values = rows.new_empty((len(rows), blocks * 32), dtype=torch.uint8)
    joined = bits
    while joined <= 4:
        joined *= 2
    for part in _pieces(values):
        some = rows[part]
        if rows.shape[1] % bits:
            some = torch.nn.functional.pad(some, (0, -rows.shape[1] % bits))
        if joined == 8:
            flat = some.contiguous().view(-1).view(torch.uint8)
        else:
            fields = some.new_empty((len(some), blocks, 4 * bits // joined), dtype=torch.int64)
            unsigned = some.view(len(some), blocks, bits).long().bitwise_and_((1 << 32) - 1)
            for field in range(fields.shape[2]):
                fields[:, :, field] = _covering(unsigned, field, joined)
            flat = _part(fields.view(-1), joined).view(torch.uint8)
        for own in [joined >> step for step in (1, 2, 3) if joined >> step >= bits]:
            flat = _halved(flat, own)
        values[part] = flat.view(len(some), -1)
    return values.view(*lead, blocks * 32)[..., :count].movedim(-1, dim).contiguous()


def _pieces(rows: Tensor) -> list[slice]:
    """Slices of rows that stay in a CPU's cache while they are worked on; elsewhere, all of them at once."""
    step = max(1, AT_ONCE // max(1, rows.shape[1])) if rows.is_cpu else max(1, len(rows))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _paired(values: Tensor, bits: int) -> Tensor:
    """Of bytes of at most four bits, an even number: one of twice as many for every two."""
    pairs = values.view(torch.int16)
    return (pairs >> (8 - bits)).bitwise_or_(pairs).to(torch.uint8)  # of which the low byte is kept


def _halved(values: Tensor, bits: int) -> Tensor:
    """The inverse of `_paired`: two bytes of `bits` bits for every one."""
    pairs = values.to(torch.int16)
    mask = (1 << bits) - 1
    return (pairs << (8 - bits)).bitwise_or_(pairs).bitwise_and_(mask << 8 | mask).view(torch.uint8)


def _join(numbers: Tensor, bits: int) -> Tensor:
    """Of int64 with a value in every byte: the eight values side by side, from bit 0 on; overwrites `numbers`.

    First neighbours are joined in pairs, then pairs in fours, then fours in eights.
    """
    for apart, own, mask in _steps(bits):
        moved = (numbers >> (apart - own)).bitwise_and_(mask << own)
        numbers.bitwise_and_(mask).bitwise_or_(moved)
    return numbers


def _part(numbers: Tensor, bits: int) -> Tensor:
    """The inverse of `_join`; overwrites `numbers`."""
    for apart, own, mask in reversed(_steps(bits)):
        moved = (numbers << (apart - own)).bitwise_and_(mask << apart)
        numbers.bitwise_and_(mask).bitwise_or_(moved)
    return numbers


def _steps(bits: int) -> list[tuple[int, int, int]]:
    """Of every joining: how far apart two parts are, how many bits of theirs count, a mask of the first of each two."""
    sizes = [(apart, bits * apart // 8) for apart in (8, 16, 32)]
    return [(apart, own, sum(((1 << own) - 1) << at for at in range(0, 64, 2 * apart))) for apart, own in sizes]


def _overlapping(fields: Tensor, word: int, bits: int) -> Tensor:
    """Word number `word` (int64, its low 32 bits count) of neighbouring fields `(..., F)` of eight values each."""
    found: Tensor | None = None
    for field in range(fields.shape[-1]):
        at = 8 * bits * field - 32 * word
        if -8 * bits < at < 32:
            piece = fields[..., field] << at if at >= 0 else fields[..., field] >> -at
            found = piece if found is None else found | piece
    assert found is not None
    return found


def _covering(words: Tensor, field: int, bits: int) -> Tensor:
    """Field number `field` of eight values out of neighbouring words `(..., W)`, int64 below `2**32`."""
    found: Tensor | None = None
    for word in range(words.shape[-1]):
        at = 32 * word - 8 * bits * field
        if -32 < at < 8 * bits:
            piece = words[..., word] << at if at >= 0 else words[..., word] >> -at
            found = piece if found is None else found | piece
    assert found is not None
    return found & ((1 << 8 * bits) - 1)


def pack_awq(values: Tensor) -> Tensor:
    """Packs 4-bit values `(..., N)` into `(..., N/8)` int32 words in AWQ's order; `N` is a multiple of 8."""
    ordered = values.unflatten(-1, (-1, 8))[..., list(AWQ_ORDER)]
    return pack(ordered.flatten(-2), 4)


def unpack_awq(words: Tensor) -> Tensor:
    """The inverse of `pack_awq`: uint8 `(..., 8*W)`."""
    ordered = unpack(words, 4, words.shape[-1] * 8).unflatten(-1, (-1, 8))
    values = torch.empty_like(ordered)
    values[..., list(AWQ_ORDER)] = ordered
    return values.flatten(-2)
