"""Words of GPTQ, AWQ and compressed-tensors checkpoints to planes and back, without a change to any value.

Shapes are those of `reference.py`. Scales keep their values; where 16 bits would lose some, planes hold 32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .planes import PackedWeight
from .reference import pack, pack_awq, unpack, unpack_awq


def from_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, bits: int, in_features: int, *, version: int = 1,
    group: int | None = None,
) -> PackedWeight:  # fmt: skip
    """Planes of a GPTQ layer whose groups are in order (`desc_act` off).

    Args:
        qweight: `(W, O)` int32. qzeros: `(G, W')` int32. scales: `(G, O)`.
        version: 1 stores each zero point minus one, which goes from 1 to `2**bits`; 2 stores it as it is.
    """
    codes = unpack(qweight, bits, in_features, dim=0).T
    zero = unpack(qzeros, bits, scales.shape[1]).T.to(torch.int16)
    if version == 1:
        zero = zero + 1
    return PackedWeight.from_codes(codes, scales.T, zero, bits, group)


def to_gptq(weight: PackedWeight, *, version: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """`qweight`, `qzeros` and `scales` (float32) of a GPTQ layer.

    Raises:
        ValueError: version 1 cannot hold a zero point of 0, and version 2 none of `2**bits`.
    """
    zero = _whole(weight.zero) - (1 if version == 1 else 0)
    _check_range(zero, weight.bits, f"version {version} of GPTQ")
    qzeros = pack(zero.T.to(torch.uint8), weight.bits)
    return pack(weight.codes().T, weight.bits, dim=0), qzeros, weight.scale.T.contiguous()


def from_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor, group: int | None = None) -> PackedWeight:
    """Planes of a 4-bit AWQ GEMM layer: `qweight (I, W)` int32, `qzeros (G, W)` int32, `scales (G, O)`."""
    return PackedWeight.from_codes(unpack_awq(qweight).T, scales.T, unpack_awq(qzeros).T, 4, group)


def to_awq(weight: PackedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """`qweight`, `qzeros` and `scales` (float32) of an AWQ GEMM layer.

    Raises:
        ValueError: not 4 bits, O is not a multiple of 8, or a zero point is no code.
    """
    if weight.bits != 4 or weight.out_features % 8:
        raise ValueError(
            f"AWQ holds 4 bits and multiples of 8 rows, not {weight.bits} bits, {weight.out_features} rows"
        )
    zero = _whole(weight.zero)
    _check_range(zero, 4, "AWQ")
    words = pack_awq(weight.codes().T.contiguous())
    return words, pack_awq(zero.T.to(torch.uint8).contiguous()), weight.scale.T.contiguous()


def from_compressed_tensors(
    weight_packed: Tensor, weight_scale: Tensor, weight_zero_point: Tensor | None, bits: int, in_features: int,
    group: int | None = None,
) -> PackedWeight:  # fmt: skip
    """Planes of a `pack-quantized` layer: `(O, W)` int32, `(O, G)`, `(W', G)` int32 or None when symmetric."""
    codes = unpack(weight_packed, bits, in_features)
    zero = None if weight_zero_point is None else unpack(weight_zero_point, bits, weight_scale.shape[0], dim=0)
    return PackedWeight.from_codes(codes, weight_scale, zero, bits, group)


def to_compressed_tensors(weight: PackedWeight, *, symmetric: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """`weight_packed`, `weight_scale` (float32) and `weight_zero_point`, which is None when `symmetric`.

    Raises:
        ValueError: a zero point is no code, or not the middle one although `symmetric`.
    """
    zero = _whole(weight.zero)
    _check_range(zero, weight.bits, "compressed-tensors")
    words = pack(weight.codes(), weight.bits)
    if not symmetric:
        return words, weight.scale, pack(zero.to(torch.uint8), weight.bits, dim=0)
    if not bool((zero == 2 ** (weight.bits - 1)).all()):
        raise ValueError("zero points differ from the middle code, so the weight is not symmetric")
    return words, weight.scale, None


def _whole(zero: Tensor) -> Tensor:
    rounded = zero.round()
    if not torch.equal(rounded, zero):
        raise ValueError("zero points are not whole numbers, which only planes hold")
    return rounded.to(torch.int32)


def _check_range(stored: Tensor, bits: int, who: str) -> None:
    if stored.numel() and (int(stored.min()) < 0 or int(stored.max()) >= 2**bits):
        raise ValueError(f"{who} cannot hold these zero points in {bits} bits")
