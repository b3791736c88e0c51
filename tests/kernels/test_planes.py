"""Planes hold codes, scales and zero points without loss, and hold what other formats hold."""

from __future__ import annotations

import pytest
import torch

from rqat_kernels.packing import (
    PackedWeight,
    dequantize_packed,
    dequantize_reference,
    from_awq,
    from_compressed_tensors,
    from_gptq,
    pack,
    pack_awq,
    to_awq,
    to_compressed_tensors,
    to_gptq,
)
from rqat_kernels.packing.planes import EXTRA_BIT

SHAPES = [
    (1, 128, 128),
    (3, 512, 128),
    (5, 640, 128),
    (7, 96, 32),
    (4, 192, 64),
    (6, 1024, 256),
    (9, 45, 45),
    (33, 1300, 1300),
]
"""O, I and group."""


def draw(out: int, width: int, group: int, bits: int, *, symmetric: bool = False, seed: int = 0):
    """Codes, scale and zero point as rqat makes them: the scale fits bfloat16 and float16."""
    source = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (out, width), generator=source).to(torch.uint8)
    groups = -(-width // group)
    scale = (torch.rand((out, groups), generator=source) * 0.1 + 0.01).to(torch.bfloat16).float()
    zero = torch.randint(0, 2**bits, (out, groups), generator=source).to(torch.uint8)
    return codes, scale, torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
def test_nothing_is_lost(out: int, width: int, group: int, bits: int) -> None:
    codes, scale, zero = draw(out, width, group, bits)
    weight = PackedWeight.from_codes(codes, scale, zero, bits)
    assert torch.equal(weight.codes(), codes)
    assert torch.equal(weight.scale, scale)
    assert torch.equal(weight.zero, zero.float())
    assert weight.params.dtype == torch.bfloat16
    stored = weight.words.nbytes + (0 if weight.extra is None else weight.extra.nbytes)
    assert stored * 8 == out * weight.padded * bits
    assert weight.nbytes == stored + weight.params.nbytes


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_places_of_codes_in_words(bits: int) -> None:
    """The module's own table, by arithmetic on Python integers."""
    codes, scale, zero = draw(2, 1024, 128, bits, seed=1)
    weight = PackedWeight.from_codes(codes, scale, zero, bits)
    for row, k in [(0, 0), (0, 63), (1, 64), (0, 97), (1, 500), (1, 513), (0, 800), (1, 1023)]:
        slab, place = divmod(k, 512)
        if bits == 4:
            plane, c = divmod(place, 128)
            code = int(weight.words[row, slab * 128 + c]) >> (4 * plane) & 15
        else:
            plane, c = divmod(place, 64)
            code = int(weight.words[row, slab * 64 + c]) >> (2 * plane) & 3
            if weight.extra is not None:
                half, c = divmod(c, 32)
                code += 4 * (int(weight.extra[row, slab * 32 + c]) >> (8 * half + EXTRA_BIT[plane]) & 1)
        assert code == codes[row, k]


def test_scales_that_16_bits_would_round_stay() -> None:
    codes, _, zero = draw(4, 256, 128, 3)
    scale = torch.rand(4, 2) + 0.1
    assert torch.equal(PackedWeight.from_codes(codes, scale, zero, 3).scale, scale)
    half = scale.half().float()
    weight = PackedWeight.from_codes(codes, half, zero, 3)
    assert weight.params.dtype == torch.float16
    assert torch.equal(weight.scale, half)


def test_what_has_no_planes_is_refused() -> None:
    codes, scale, zero = draw(4, 256, 128, 4)
    with pytest.raises(ValueError, match="bits=8"):
        PackedWeight.from_codes(codes, scale, zero, 8)
    with pytest.raises(ValueError, match="do not divide"):
        PackedWeight.from_codes(codes, scale[:, :1].expand(4, 3), None, 4)
    with pytest.raises(ValueError, match="do not fit"):
        PackedWeight.from_codes(codes, scale, zero[:3], 4)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dense_matrix(out: int, width: int, group: int, bits: int, dtype: torch.dtype) -> None:
    codes, scale, zero = draw(out, width, group, bits, seed=2)
    weight = PackedWeight.from_codes(codes, scale, zero, bits)
    groups = torch.arange(width) // group
    expected = ((codes.double() - zero.double()[:, groups]) * scale.double()[:, groups]).to(torch.float32).to(dtype)
    assert torch.equal(dequantize_packed(weight, dtype), expected)
    assert torch.equal(dequantize_reference(weight, dtype), expected)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("out", "width", "group"), [(32, 128, 128), (45, 640, 128), (8, 96, 32), (33, 77, 77)])
def test_formats_and_back(out: int, width: int, group: int, bits: int, symmetric: bool) -> None:
    codes, scale, zero = draw(out, width, group, bits, symmetric=symmetric, seed=3)
    weight = PackedWeight.from_codes(codes, scale, zero, bits)
    for version in (1, 2):
        stored = zero.clamp(min=1) if version == 1 else zero
        words = pack(codes.T, bits, 0), pack((stored - (2 - version)).T, bits), scale.T
        planes = from_gptq(*words, bits, width, version=version)
        assert torch.equal(planes.codes(), codes)
        assert torch.equal(planes.zero, stored.float())
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(to_gptq(planes, version=version), words, strict=True)
        )
    given = pack(codes, bits), scale, None if symmetric else pack(zero, bits, 0)
    planes = from_compressed_tensors(*given, bits, width)
    assert torch.equal(planes.words, weight.words)
    assert torch.equal(planes.params, weight.params)
    packed, values, points = to_compressed_tensors(planes, symmetric=symmetric)
    assert torch.equal(packed, given[0])
    assert torch.equal(values, scale)
    assert (points is None) if given[2] is None else torch.equal(points, given[2])


@pytest.mark.parametrize(("out", "width", "group"), [(8, 128, 128), (40, 640, 128), (16, 45, 45)])
def test_awq_and_back(out: int, width: int, group: int) -> None:
    codes, scale, zero = draw(out, width, group, 4, seed=4)
    words = pack_awq(codes.T.contiguous()), pack_awq(zero.T.contiguous()), scale.T
    planes = from_awq(*words)
    assert torch.equal(planes.codes(), codes)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(to_awq(planes), words, strict=True))


def test_zero_points_a_format_cannot_hold_are_refused() -> None:
    codes, scale, zero = draw(8, 256, 128, 4)
    with pytest.raises(ValueError, match="version 1"):
        to_gptq(PackedWeight.from_codes(codes, scale, torch.zeros_like(zero), 4), version=1)
    with pytest.raises(ValueError, match="symmetric"):
        to_compressed_tensors(PackedWeight.from_codes(codes, scale, torch.zeros_like(zero), 4), symmetric=True)
    with pytest.raises(ValueError, match="whole"):
        to_gptq(PackedWeight.from_codes(codes, scale, zero + 0.5, 4), version=2)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dense_matrix_by_kernel(out: int, width: int, group: int, bits: int, dtype, device: str, poison) -> None:
    kernel = pytest.importorskip("rqat_kernels.packing.kernel")
    codes, scale, zero = draw(out, width, group, bits, seed=5)
    weight = PackedWeight.from_codes(codes, scale, zero, bits).to(device)
    found = kernel.dequantize(weight, dtype, poison(out, width, dtype=dtype, device=device))
    assert torch.equal(found, dequantize_reference(weight, dtype))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("out", "width", "group"), [(4096, 2560, 128), (1000, 4096, 32), (512, 12288, 12288)])
def test_dense_matrix_on_a_gpu(out: int, width: int, group: int, bits: int, dtype: torch.dtype) -> None:
    codes, scale, zero = draw(out, width, group, bits, seed=6)
    weight = PackedWeight.from_codes(codes, scale, zero, bits).to("cuda")
    assert torch.equal(dequantize_packed(weight, dtype), dequantize_reference(weight, dtype))
