"""Kernels of a decoding step against plain torch in float64; odd sizes, slots in any order, rubbish in the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rqat_kernels.decode import reference

pytest.importorskip("triton")

from rqat_kernels.decode import attention, ends, kernel

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
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 2, 16), (3, 3, 20), (8, 1, 64)])
@pytest.mark.parametrize("normed", [False, True])
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
    normed: bool,
    window: int,
    splits: int,
) -> None:
    """What is appended, and what is found; lengths of no, one and several parts, ending with a tile or inside."""
    monkeypatch.setattr(attention, "splits_for", lambda *_: splits)
    capacity, lengths = 150, [0, 1, 64, 130]
    slots = torch.tensor([3, 1, 0, 4], dtype=torch.int32, device=device)
    positions = torch.tensor(lengths, dtype=torch.int32, device=device)
    keys, values = (poison(5, key_heads, capacity, width, dtype=dtype, device=device) for _ in range(2))
    for slot, length in zip(slots.tolist(), lengths, strict=True):
        for seed, cache in enumerate((keys, values)):
            cache[slot, :, :length] = random(key_heads, length, width, seed=seed, dtype=dtype, device=device)
    qkv = random(4, (heads + 2 * key_heads) * width, seed=2, dtype=dtype, device=device)
    weights = [random(width, seed=seed, dtype=dtype, device=device) for seed in (3, 4)] if normed else [None, None]
    angle = random(4, width // 2, seed=5).repeat(1, 2)
    cos, sin = angle.cos().to(device, dtype), angle.sin().to(device, dtype)
    before = [cache.clone() for cache in (keys, values)]
    found = attention.attend(qkv, *weights, cos, sin, keys, values, slots, positions, 1e-6, window)
    wide = [cache.double() for cache in before]
    reference.attend(
        qkv.double(),
        *(None if weight is None else weight.double() for weight in weights),
        cos.double(), sin.double(), *wide, slots, positions, 1e-6, window,
    )  # fmt: skip
    for cache, expected in zip((keys, values), wide, strict=True):
        assert torch.equal(cache.isnan(), expected.isnan())  # written where it should be, and nowhere else
        close(cache.nan_to_num(0), expected.nan_to_num(0))
    # Sums over what was really appended: rounding it is the check above.
    rest = (slots, positions, 1e-6, window)
    turned = reference.attend(qkv, *weights, cos, sin, *(cache.nan_to_num(0) for cache in before), *rest)
    whole = [cache.double().nan_to_num(0) for cache in (keys, values)]
    expected = softly(qkv, weights, cos, sin, *whole, *rest)
    close(found, expected)
    close(turned, expected)


def softly(
    qkv: Tensor, weights: list[Tensor | None], cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slots: Tensor,
    positions: Tensor, eps: float, window: int,
) -> Tensor:  # fmt: skip
    """The formula, row by row and head by head in float64, of queries rounded as the reference rounds them."""
    key_heads, width = keys.shape[1], keys.shape[3]
    heads = qkv.shape[1] // width - 2 * key_heads
    query = qkv.view(len(qkv), -1, width)[:, :heads]
    if weights[0] is not None:
        query = reference.add_rms_norm(query.flatten(0, 1), None, weights[0], eps)[1].view(query.shape)
    one, two = query.double().chunk(2, dim=-1)
    query = query.double() * cos.double()[:, None] + torch.cat([-two, one], -1) * sin.double()[:, None]
    query = query.to(qkv.dtype).double()
    rows = []
    for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        seen = slice(max(0, position + 1 - window) if window else 0, position + 1)
        for head in range(heads):
            key_head = head // (heads // key_heads)
            score = keys[slot, key_head, seen] @ query[row, head] * width**-0.5
            rows.append(score.softmax(0) @ values[slot, key_head, seen])
    return torch.stack(rows).view(len(qkv), -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 10), (3, 2 * 1025)])
def test_silu_mul(device: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    gate_up = random(*shape, seed=0, dtype=dtype, device=device)
    close(kernel.silu_mul(gate_up), reference.silu_mul(gate_up.double()))


def test_look_up(device: str) -> None:
    tokens = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(0)).to(device)
    slots, positions = torch.tensor([3, 0, 0], device=device), torch.tensor([0, 8, 5], device=device)
    embeddings, cos, sin = (
        random(*shape, seed=seed, device=device) for seed, shape in enumerate(((50, 33), (9, 12), (9, 12)))
    )
    found = ends.look_up(tokens, slots, positions, embeddings, cos, sin)
    for one, other in zip(found, reference.look_up(tokens, slots, positions, embeddings, cos, sin), strict=True):
        assert torch.equal(one, other)


def rows(device: str, limits: list[int]) -> dict[str, torch.Tensor]:
    """Four rows in a cache of six slots of six positions; the last of them only fills up."""
    return {
        "seeds": torch.tensor([3, 3, 2**62 + 5, 0], device=device),
        "tokens": torch.full((6, 6), -1, device=device),
        "logprobs": torch.zeros(6, 6, device=device),
        "told": torch.zeros(6, dtype=torch.int32, device=device),
        "slots": torch.tensor([4, 1, 0, 5], device=device),
        "positions": torch.tensor([0, 3, 2, 0], device=device),
        "live": torch.tensor([1, 1, 1, 0], device=device),
        "limits": torch.tensor(limits, device=device),
        "stops": torch.tensor([-1, 0], device=device),
    }


def owned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the slot of the rows that only fill up."""
    return {name: tensor[:-1] if name in ("tokens", "logprobs", "told") else tensor for name, tensor in state.items()}


def appended(way: Any, scores: torch.Tensor, state: dict[str, torch.Tensor], **settings: Any) -> None:
    way(scores, settings.get("temperature"), settings.get("floor"), *state.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [7, 2 * ends.PIECE, 9 * ends.PIECE + 5])
def test_append_greedy(device: str, dtype: torch.dtype, vocabulary: int) -> None:
    """The largest in the first piece, in the last one, several equal ones; a row ends, two steps after each other."""
    logits = random(4, vocabulary, seed=0, dtype=dtype, device=device)
    logits[1, 0] = logits[2, -1] = 99.0
    logits[0, [2, 5, vocabulary - 1]] = 50.0
    given = rows(device, [5, 5, 4, 0])
    expected = {name: tensor.clone() for name, tensor in given.items()}
    for scores in (logits, -logits):
        appended(ends.append, scores, given)
        appended(reference.append, scores, expected)
        # Which of equal ones torch gives is not said; here it is the first.
        if scores is logits:
            expected["tokens"][4, 1] = 2
            assert given["tokens"][[4, 1, 0], [1, 4, 3]].tolist() == [2, 0, vocabulary - 1]
            assert given["slots"].tolist() == [4, 5, 0, 5]  # 0 is among the stops
            assert given["live"].tolist() == [1, 0, 1, 0]
            assert given["told"][[4, 1, 0]].tolist() == [1, -4, 3]
        for name, tensor in owned(given).items():
            torch.testing.assert_close(tensor, owned(expected)[name], rtol=0, atol=1e-4, msg=name)
    assert given["told"][0] == -4  # its limit
    assert given["slots"].tolist() == [4, 5, 5, 5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [7, 2 * ends.PIECE, 9 * ends.PIECE + 5])
@pytest.mark.parametrize("floor", [None, -0.5])
def test_append_sampled(device: str, dtype: torch.dtype, vocabulary: int, floor: float | None) -> None:
    """Drawn tokens are the reference's; log-probabilities within sums in another order."""
    given = rows(device, [5, 5, 4, 0])
    settings: dict[str, Any] = {"temperature": torch.tensor([0.7], device=device)}
    if floor is not None:
        settings["floor"] = torch.full((4,), floor, device=device)
    expected = {name: tensor.clone() for name, tensor in given.items()}
    for seed in range(2):
        scores = random(4, vocabulary, seed=seed, dtype=dtype, device=device)
        scores[0, -1] = float("-inf")
        writes = given["live"].bool().tolist()
        appended(ends.append, scores, given, **settings)
        appended(reference.append, scores, expected, **settings)
        for name, tensor in owned(given).items():
            torch.testing.assert_close(tensor, owned(expected)[name], rtol=0, atol=1e-4, msg=name)
        drawn = zip(scores, (4, 1, 0), (1, 4, 3), writes, strict=False)
        for row, slot, at, wrote in drawn if floor is not None else ():
            assert not wrote or row[given["tokens"][slot, at + seed]].float() >= floor


def test_uniform_numbers_are_even_and_differ_from_seed_to_seed_and_place_to_place() -> None:
    """Bounds: five standard deviations of 100,000 even draws; of their correlation, too."""
    places = torch.arange(100_000)
    one, two = (reference.uniform(torch.tensor(seed), places) for seed in (1, 2**40))
    for drawn in (one, two, reference.uniform(places * 7, torch.tensor(3))):
        assert abs(float(drawn.mean()) - 0.5) < 5 * 12**-0.5 / 316
        counts = torch.histc(drawn, 10, 0, 1) / len(places)
        assert float((counts - 0.1).abs().max()) < 5 * 0.3 / 316
    for first, second in ((one, two), (one[1:], one[:-1])):
        assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / 316


def test_rubbish_leads_to_no_token_that_is_not_there(device: str) -> None:
    for temperature in (None, torch.ones(1, device=device)):
        given = rows(device, [5, 5, 5, 0])
        appended(ends.append, torch.full((4, 5), float("nan"), device=device), given, temperature=temperature)
        assert all(0 <= int(given["tokens"][slot, at]) < 5 for slot, at in ((4, 1), (1, 4), (0, 3)))


def test_no_rows(device: str) -> None:
    nothing = torch.empty(0, 32, device=device)
    assert kernel.add_rms_norm(nothing, None, torch.ones(32, device=device), 1e-6)[1].shape == (0, 32)
    assert kernel.silu_mul(nothing).shape == (0, 16)


def test_parts_keep_every_processor_busy_and_are_never_finer_than_a_tile() -> None:
    cpu = torch.device("cpu")
    assert attention.splits_for(1000, 4096, cpu) == 1
    assert attention.splits_for(1, 4096, cpu) == attention.processors(cpu)
    assert attention.splits_for(1, 2 * attention.TILE, cpu) == 2
    assert attention.splits_for(1, 3 * attention.TILE, cpu) == 4
    assert attention.splits_for(1, attention.TILE, cpu) == 1
