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

import torch
from torch import Tensor

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
    # 32 values fill `bits` words without a remainder, and 8 values fill `bits` bytes.
    rows = torch.nn.functional.pad(rows, (0, -count % 32))
    width = rows.shape[-1]
    rows = rows.reshape(*lead, width // 8, 8)
    octets = rows.new_zeros((*lead, width // 8, bits))
    for index in range(8):
        byte, shift = divmod(index * bits, 8)
        octets[..., byte] |= rows[..., index] << shift
        if shift + bits > 8:
            octets[..., byte + 1] |= rows[..., index] >> (8 - shift)
    words = octets.view(-1).view(torch.int32).view(*lead, width // 32 * bits)
    return words[..., : words_for(count, bits)].movedim(-1, dim).contiguous()


def unpack(words: Tensor, bits: int, count: int, dim: int = -1) -> Tensor:
    """The inverse of `pack`: uint8 values, `count` of them along `dim`; contiguous."""
    rows = words.movedim(dim, -1)
    lead = rows.shape[:-1]
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % bits))
    blocks = rows.shape[-1] // bits * 4
    octets = rows.reshape(-1).view(torch.uint8).view(*lead, blocks, bits)
    values = octets.new_empty((*lead, blocks, 8))
    for index in range(8):
        byte, shift = divmod(index * bits, 8)
        value = octets[..., byte] >> shift
        if shift + bits > 8:
            value = value | (octets[..., byte + 1] << (8 - shift))
        values[..., index] = value & ((1 << bits) - 1)
    return values.view(*lead, blocks * 8)[..., :count].movedim(-1, dim).contiguous()


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
