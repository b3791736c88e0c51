"""Packing is lossless, and its words are the ones other implementations write."""

import pytest
import torch

from rqat_kernels.packing import AWQ_ORDER, pack, pack_awq, reference, unpack, unpack_awq, words_for

SHAPES = [(1, 1), (1, 31), (2, 32), (3, 33), (5, 96), (7, 100), (64, 128), (33, 257), (0, 5), (4, 0)]


def codes(shape: tuple[int, ...], bits: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def as_stream(row: list[int], bits: int) -> list[int]:
    """The words of one row by arithmetic on a Python integer: the definition, told another way."""
    stream = sum(value << (bits * index) for index, value in enumerate(row))
    words = [(stream >> (32 * word)) & 0xFFFFFFFF for word in range(words_for(len(row), bits))]
    return [word - (1 << 32) if word >> 31 else word for word in words]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [0, 1])
def test_unpack_inverts_pack(bits: int, shape: tuple[int, int], dim: int) -> None:
    values = codes(shape, bits)
    words = pack(values, bits, dim)
    assert words.dtype == torch.int32
    assert words.is_contiguous()
    assert words.shape[dim] == words_for(shape[dim], bits)
    assert torch.equal(unpack(words, bits, shape[dim], dim), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_values_and_words_may_lie_anywhere_in_memory(bits: int) -> None:
    values = codes((1 + 32 * 64,), bits)
    shifted = values[1:].view(32, 64)
    words = pack(shifted, bits)
    assert torch.equal(words, pack(shifted.clone(), bits))
    moved = torch.cat([torch.zeros(1, dtype=torch.int32), words.flatten()])[1:].view(words.shape)
    assert torch.equal(unpack(moved, bits, 64), shifted)
    assert torch.equal(shifted.flatten(), values[1:]), "what is packed is left as it is"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 10, 11, 31, 32, 45, 96])
def test_words_are_a_bit_stream(bits: int, count: int) -> None:
    values = codes((3, count), bits, seed=count)
    assert pack(values, bits).tolist() == [as_stream(row, bits) for row in values.tolist()]


@pytest.mark.parametrize("bits", [2, 3])
def test_a_cpu_packs_piece_by_piece(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = codes((7, 100), bits)
    whole = pack(values, bits)
    monkeypatch.setattr(reference, "AT_ONCE", 300)
    assert torch.equal(pack(values, bits), whole)
    assert torch.equal(unpack(whole, bits, 100), values)


def test_three_bits_put_32_values_into_3_words() -> None:
    """What GPTQ kernels read: value 10 lies in words 0 and 1 (2 + 1 bits), value 21 in words 1 and 2 (1 + 2)."""
    values = torch.zeros(32, dtype=torch.uint8)
    values[10], values[21] = 0b110, 0b101
    low, middle, high = (word & 0xFFFFFFFF for word in pack(values, 3).tolist())
    assert low == 0b10 << 30
    assert middle == 0b1 | (0b1 << 31)
    assert high == 0b10


def test_pack_keeps_leading_dimensions() -> None:
    values = codes((2, 3, 40), 3)
    assert torch.equal(pack(values, 3)[1], pack(values[1], 3))
    assert torch.equal(unpack(pack(values, 3), 3, 40), values)


def test_pack_reads_strided_values() -> None:
    values = codes((64, 48), 4)
    assert torch.equal(pack(values.T, 4), pack(values, 4, 0).T)


def test_awq_order() -> None:
    (word,) = pack_awq(torch.arange(8, dtype=torch.uint8)).tolist()
    assert [(word & 0xFFFFFFFF) >> shift & 15 for shift in range(0, 32, 4)] == list(AWQ_ORDER)


@pytest.mark.parametrize("shape", [(1, 8), (5, 64), (2, 3, 24)])
def test_unpack_inverts_pack_awq(shape: tuple[int, ...]) -> None:
    values = codes(shape, 4)
    assert torch.equal(unpack_awq(pack_awq(values)), values)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(3, 33), (5, 96), (64, 128), (33, 257)])
@pytest.mark.parametrize("dim", [0, 1])
def test_words_equal_those_of_compressed_tensors(bits: int, shape: tuple[int, int], dim: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    values = codes(shape, bits)
    signed = (values.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    theirs = helpers.pack_to_int32(signed, bits, packed_dim=dim)
    assert torch.equal(pack(values, bits, dim), theirs)
