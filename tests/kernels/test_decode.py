"""Kernels of a decoding step against plain torch in float64; odd sizes, slots in any order, rubbish in the cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rqat_kernels.decode import reference

pytest.importorskip("triton")

from rqat_kernels.decode import attention, kernel

# float32 sums in another order; 16 bits: one rounding more of the result (2**-8 of bfloat16, 2**-11 of float16).
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

# The interpreter has no bfloat16.
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    bound = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (3, 100), (5, 257)])
@pytest.mark.parametrize("with_delta", [False, True])
def test_add_rms_norm(device: str, dtype: torch.dtype, rows: int, width: int, with_delta: bool) -> None:
    residual = random(rows, width, seed=0, dtype=dtype, device=device)
    delta = random(rows, width, seed=1, dtype=dtype, device=device) if with_delta else None
    weight = random(width, seed=2, dtype=dtype, device=device)
    total, normed = kernel.add_rms_norm(residual, delta, weight, 1e-6)
    expected = residual if delta is None else residual + delta
    assert torch.equal(total, expected)
    close(normed, reference.add_rms_norm(expected.double(), None, weight.double(), 1e-6)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 2, 16), (3, 3, 10), (8, 1, 64)])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_append(
    poison, device: str, dtype: torch.dtype, heads: int, key_heads: int, width: int, normed: bool
) -> None:
    rows, capacity, slots = 3, 9, torch.tensor([2, 0, 3], dtype=torch.int32, device=device)
    positions = torch.tensor([4, 0, 8], dtype=torch.int32, device=device)
    qkv = random(rows, (heads + 2 * key_heads) * width, seed=0, dtype=dtype, device=device)
    weights = [random(width, seed=seed, dtype=dtype, device=device) for seed in (1, 2)] if normed else [None, None]
    angle = random(capacity, width // 2, seed=3).repeat(1, 2)
    cos, sin = angle.cos().to(device, dtype), angle.sin().to(device, dtype)
    keys, values = (poison(4, key_heads, capacity, width, dtype=dtype, device=device) for _ in range(2))
    wide_keys, wide_values = keys.double(), values.double()
    query = kernel.rope_append(qkv, *weights, cos, sin, keys, values, slots, positions, 1e-6)
    expected = reference.rope_append(
        qkv.double(),
        *(None if weight is None else weight.double() for weight in weights),
        cos.double(),
        sin.double(),
        wide_keys,
        wide_values,
        slots,
        positions,
        1e-6,
    )
    close(query, expected)
    for found, wide in ((keys, wide_keys), (values, wide_values)):
        assert torch.equal(found.isnan(), wide.isnan())  # written where it should be, and nowhere else
        close(found.nan_to_num(0), wide.nan_to_num(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 2, 16), (3, 3, 20), (8, 1, 64)])
@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("splits", [1, 4])
def test_attend(
    poison,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    heads: int,
    key_heads: int,
    width: int,
    window: int,
    splits: int,
) -> None:
    monkeypatch.setattr(attention, "splits_for", lambda *_: splits)
    capacity, lengths = 150, [1, 64, 131]
    slots = torch.tensor([3, 1, 0], dtype=torch.int32, device=device)
    positions = torch.tensor(lengths, dtype=torch.int32, device=device) - 1
    keys, values = (poison(4, key_heads, capacity, width, dtype=dtype, device=device) for _ in range(2))
    for slot, length in zip(slots.tolist(), lengths, strict=True):
        for seed, cache in enumerate((keys, values)):
            cache[slot, :, :length] = random(key_heads, length, width, seed=seed, dtype=dtype, device=device)
    query = random(3, heads, width, seed=2, dtype=dtype, device=device)
    found = attention.attend(query, keys, values, slots, positions, width**-0.5, window)
    whole = [cache.double().nan_to_num(0) for cache in (keys, values)]
    close(found, reference.attend(query.double(), *whole, slots, positions, width**-0.5, window))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 10), (3, 2 * 1025)])
def test_silu_mul(device: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    gate_up = random(*shape, seed=0, dtype=dtype, device=device)
    close(kernel.silu_mul(gate_up), reference.silu_mul(gate_up.double()))


def test_no_rows(device: str) -> None:
    nothing = torch.empty(0, 32, device=device)
    assert kernel.add_rms_norm(nothing, None, torch.ones(32, device=device), 1e-6)[1].shape == (0, 32)
    assert kernel.silu_mul(nothing).shape == (0, 16)


def test_parts_keep_every_processor_busy_and_are_never_finer_than_a_tile() -> None:
    cpu = torch.device("cpu")
    assert attention.splits_for(1000, 4096, cpu) == 1
    assert attention.splits_for(1, 4096, cpu) == attention.processors(cpu)
    assert attention.splits_for(1, 2 * attention.TILE, cpu) == 2
    assert attention.splits_for(1, attention.TILE, cpu) == 1
