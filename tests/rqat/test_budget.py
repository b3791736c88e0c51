"""A budget without a model: how it is spelled, what it offers, and which widths cost the least."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from rqat import RqatError, Schemes
from rqat.budget import UNQUANTIZED, Choice, Offer, allot, bounds, budget_bytes, hull, offer
from rqat.contracts.options import in_file
from rqat.model.families import LLAMA
from rqat.model.layers import EMBEDDING, HEAD
from rqat.scheme import Scheme

LINEARS = dict.fromkeys(LLAMA.layer_names(2), (64, 64))
TIED = {EMBEDDING: (128, 64)}
QKV = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")


def offered(scheme: str | dict[str, str], **changes: object) -> Offer:
    given = {"linears": LINEARS, "end_shapes": TIED, "layout": LLAMA, "blocks": 2, **changes}
    ends = given.pop("ends", (4, 8, UNQUANTIZED))
    embedding = given.pop("embedding", True)
    return offer(Schemes.parse(scheme), (2, 3, 4), ends, embedding, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("420MB", 420_000_000),
        ("1.5 gb", 1_500_000_000),
        ("2MiB", 2 << 20),
        ("700000B", 700_000),
        ("2.8bits", 350_000),
        ("4 bit", 500_000),
        ("2.8", 350_000),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert budget_bytes(text, 1_000_000) == count


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "3 apples", "0", "1e3MB", "3MB/s"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RqatError, match="is not a size"):
        budget_bytes(text, 1_000_000)


def test_layers_that_read_one_input_get_one_width() -> None:
    found = offered("w4g32")
    assert found.units[0] == (EMBEDDING,)
    assert found.units[1] == QKV
    assert len(found.units) == 1 + 2 * 4
    assert found.widths(QKV) == [2, 3, 4]
    assert found.widths((EMBEDDING,)) == [4, 8, UNQUANTIZED]
    mapping = found.mapping({QKV: 3, (EMBEDDING,): UNQUANTIZED})
    assert mapping == dict.fromkeys(QKV, Scheme.parse("w3g32"))


def test_layers_may_be_apart() -> None:
    found = offered("w4g32", together=False)
    assert len(found.units) == 1 + 2 * 7
    assert all(len(unit) == 1 for unit in found.units)


def test_patterns_pin_what_they_name() -> None:
    found = offered({"default": "w4g32", "*.down_proj": "w8g32", "*.0.self_attn.v_proj": "w4g64"})
    assert found.pinned["model.layers.1.mlp.down_proj"] == Scheme.parse("w8g32")
    assert QKV[:2] in found.units
    assert not any("down_proj" in name for unit in found.units for name in unit)
    assert EMBEDDING in offered({"default": "w4g32", "embed_tokens": "w8g32"}).pinned


def test_what_is_skipped_or_not_packed_is_not_offered() -> None:
    assert not any("q_proj" in name for unit in offered("w4g32", skip=["*.q_proj"]).units for name in unit)
    assert (EMBEDDING,) not in offered("w4g32", embedding=False).units
    assert (EMBEDDING,) not in offered("w4g32", ends=(UNQUANTIZED,)).units
    assert offered("w4g32", skip=["embed_tokens"]).widths((EMBEDDING,)) in ([], [UNQUANTIZED])
    apart = offered("w4g32", embedding=False, end_shapes={**TIED, HEAD: (128, 64)})
    assert (HEAD,) in apart.units
    assert (EMBEDDING,) not in apart.units


def test_bounds_are_all_narrowest_and_all_widest() -> None:
    shapes = LINEARS | TIED
    weights = sum(math.prod(shape) for shape in LINEARS.values())
    parameters = weights + 128 * 64 + 100
    low, high = bounds(offered("w4g32"), shapes, parameters, in_file(None, Scheme.bits_per_weight))
    assert low == math.ceil((weights * (2 + 18 / 32) + 128 * 64 * (4 + 20 / 32) + 1600) / 8)
    assert high == math.ceil((weights * (4 + 20 / 32) + 128 * 64 * 16 + 1600) / 8)


def test_the_hull_leaves_out_what_no_exchange_of_bytes_for_cost_picks() -> None:
    choices = [Choice(2, 10, 1.0), Choice(3, 20, 0.9), Choice(4, 30, 0.1), Choice(8, 60, 0.2)]
    assert [choice.bits for choice in hull(choices)] == [2, 4]


@pytest.mark.parametrize("seed", range(8))
def test_a_choice_is_at_most_one_upgrade_away_from_the_best(seed: int) -> None:
    draw = random.Random(seed)
    options = {}
    for unit in range(6):
        size, cost = draw.randint(5, 20), draw.uniform(0.1, 3)
        options[(str(unit),)] = [Choice(bits, size * bits, cost * 4.0**-bits) for bits in (2, 3, 4, 8)]
    smallest = sum(own[0].bytes for own in options.values())
    room = smallest + draw.randint(0, 2 * smallest)
    found = allot(options, room, [("0",)])
    taken = sum(choice.bytes for choice in found.values())
    assert taken <= room
    every = itertools.product(*options.values())
    best = min(sum(c.kl for c in each) for each in every if sum(c.bytes for c in each) <= room)
    largest = max(own[0].kl - own[1].kl for own in options.values())
    assert best - 1e-12 <= sum(choice.kl for choice in found.values()) <= best + largest
    # Nothing that is cheaper still fits in what is left.
    for unit, own in options.items():
        better = [c for c in own if c.kl < found[unit].kl and c.bytes - found[unit].bytes <= room - taken]
        assert not better, (unit, better)


def test_too_little_room_is_refused() -> None:
    with pytest.raises(RqatError, match="smallest widths"):
        allot({("a",): [Choice(2, 10, 1.0)]}, 9)
