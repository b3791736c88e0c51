"""Schemes: spellings, and which one a layer gets."""

from __future__ import annotations

import pytest

from rqat import RqatError, Scheme, Schemes

MIXED = {"default": "w2g128", "*.down_proj": "w3g64", "model.layers.0.*": "w4-row", "lm_head": "w8g128"}


@pytest.mark.parametrize(
    "spelling",
    ["w2g128", "w3g64-sym", "w4-row", "w8-row-sym", "w2g128-seq", "w3g64-sym-acme", "w4-row-nf4", "w2g8-a:b"],
)
def test_spellings_are_read_back(spelling: str) -> None:
    assert str(Scheme.parse(spelling)) == spelling
    assert Scheme.parse(spelling.upper()) == Scheme.parse(spelling)


def test_an_unknown_ending_names_a_grid() -> None:
    assert Scheme.parse("w2-seq").grid == "seq"
    assert Scheme.parse("w2g64-acme-log").grid == "acme-log"
    assert Scheme.parse("w2g128").grid == Scheme.parse("w2g128-uniform").grid == "uniform"


@pytest.mark.parametrize(
    "spelling", ["w2g128-", "w2g128-seq-seq", "w2g64-row", "w2g128-4", "2g128", "", "w5g64", "w2g12"]
)
def test_other_text_is_refused(spelling: str) -> None:
    with pytest.raises(RqatError, match=f"here: '{spelling}'"):
        Scheme.parse(spelling, where="here")


def test_the_longest_pattern_counts() -> None:
    schemes = Schemes.parse(MIXED)
    found = {
        name: str(schemes.of(name))
        for name in (
            "model.layers.1.mlp.up_proj",
            "model.layers.1.mlp.down_proj",
            "model.layers.0.mlp.down_proj",
            "lm_head",
        )
    }
    assert list(found.values()) == ["w2g128", "w3g64", "w4-row", "w8g128"]
    turned = Schemes.parse(dict(reversed(MIXED.items())))
    assert all(turned.of(name) == schemes.of(name) for name in found)


def test_of_equally_long_patterns_the_last_counts() -> None:
    for first, last in (("*.k_proj", "*.?_proj"), ("*.?_proj", "*.k_proj")):
        schemes = Schemes.parse({"default": "w2g128", first: "w3g128", last: "w4g128"})
        assert (schemes.pattern_of("a.k_proj"), schemes.of("a.k_proj").bits) == (last, 4)


def test_one_scheme_is_that_of_all() -> None:
    assert Schemes.parse("w2g128") == Schemes.parse(Scheme.parse("w2g128")) == Schemes.parse({"default": "w2g128"})
    assert str(Schemes.parse("w2g128")) == "w2g128"
    assert Schemes.parse("w2g128").facts() == Scheme.parse("w2g128").model_dump(mode="json")


def test_schemes_can_be_hashed_shown_and_serialized() -> None:
    schemes = Schemes.parse(MIXED)
    assert hash(schemes) == hash(Schemes.parse(MIXED))
    assert Schemes.model_validate_json(schemes.model_dump_json()) == schemes
    assert str(schemes) == "w2g128, *.down_proj: w3g64, model.layers.0.*: w4-row, lm_head: w8g128"
    assert [str(scheme) for scheme in schemes.different] == ["w2g128", "w3g64", "w4-row", "w8g128"]
    assert schemes.facts() != Schemes.parse("w2g128").facts()


def test_a_mapping_needs_a_default_and_its_errors_name_the_entry() -> None:
    with pytest.raises(RqatError, match=r"scheme: the mapping has no default. .*default: w2g128"):
        Schemes.parse({"lm_head": "w8g128"}, where="scheme")
    with pytest.raises(RqatError, match=r"scheme.lm_head: 'w9' asks for 9 bits"):
        Schemes.parse({"default": "w2g128", "lm_head": "w9"}, where="scheme")


def test_a_scheme_for_every_layer_is_told_in_one_short_line() -> None:
    few = Schemes.parse({"default": "w2g128", "*.v_proj": "w4g128"})
    assert few.brief == str(few) == "w2g128, *.v_proj: w4g128"
    many = {f"layers.{i}.v_proj": "w4g128" if i % 2 else "w3g128" for i in range(101)}
    assert Schemes.parse({"default": "w2g128", **many}).brief == "w2g128, 51 patterns: w3g128, 50 patterns: w4g128"
    alone = {"default": "w2g128", **many, "model.layers.7.mlp.up_proj": "w8g128"}
    assert Schemes.parse(alone).brief.endswith(", 1 pattern: w8g128")
