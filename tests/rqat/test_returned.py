"""What plugins return, where Python would let anything pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import Field

import rqat
from rqat.errors import PluginError

ROW = {"prompt": "What is 1 + 1?", "completion": "2", "answer": "2"}


def source(made: Any) -> Any:
    class Source(rqat.Source):
        def rows(self, split: Any, seed: int) -> Any:
            return made

        def read_ahead(self, split: Any, seed: int) -> Any:
            return made

    return Source(rqat.Options())


def task(made: Any, verdict: Any = "correct") -> Any:
    class Judge:
        def grade(self, completion: str, answer: str, row: rqat.Row) -> Any:
            return verdict

    class Task(Judge, rqat.Task):  # a method that comes from beside is held to its word as well
        @staticmethod
        def problems() -> Any:
            return made

    return Task(rqat.TaskOptions())


@pytest.mark.parametrize("verdict", [True, False, None, 1.0, "Correct", ["correct"]])
def test_a_verdict_is_one_of_three_words(verdict: Any) -> None:
    """True counted as a wrong answer, in every evaluation and every reward."""
    with pytest.raises(PluginError, match=r'Judge\.grade returned .* Return "correct", "wrong" or "unverifiable"\.'):
        task([ROW], verdict).grade("2", "2", ROW)
    assert task([ROW], "wrong").grade("2", "2", ROW) == "wrong"


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (None, "rows returned None. Return or yield rows."),
        ("a text", "rows returned 'a text'. Return or yield rows."),
        ([ROW, ("a", "b")], "row 2 is ('a', 'b')"),
        ([{**ROW, "answer": 2}], "row 1 has 2 as its answer, which is no text"),
        ([{**ROW, "completion": b"2"}], "row 1 has b'2' as its completion"),
        ([{"messages": [("user", "What is 1 + 1?")]}], "row 1 has [('user', 'What is 1 + 1?')] as its messages"),
        ([{"messages": "What is 1 + 1?"}], "row 1 has 'What is 1 + 1?' as its messages"),
    ],
)
def test_rows_of_a_source_are_mappings_of_text(made: Any, says: str) -> None:
    with pytest.raises(PluginError) as told:
        list(source(made).rows("train", 0))
    assert says in str(told.value)


def test_rows_that_are_right_come_as_they_are_one_by_one() -> None:
    def endless() -> Iterator[rqat.Row]:
        while True:
            yield {**ROW, "messages": None, "extra": [1]}  # type: ignore[typeddict-unknown-key,typeddict-item]

    assert next(source(endless()).rows("train", 0)) == {**ROW, "extra": [1]}
    assert next(source([ROW]).rows("train", 0)) == ROW


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (None, "problems returned None"),
        ([{"prompt": "What is 1 + 1?"}], "row 1 has no answer"),
        ([ROW, {"answer": "2"}], "row 2 has no prompt"),
    ],
)
def test_problems_can_be_asked_and_graded(made: Any, says: str) -> None:
    with pytest.raises(PluginError, match=says):
        task(made).problems()
    assert task(row for row in [ROW]).problems() == [ROW]


def test_what_is_to_be_told_may_be_one_problem_or_nothing() -> None:
    one = rqat.Problem("too long")
    assert source(None).read_ahead("train", 0) == []
    assert source(one).read_ahead("train", 0) == source([one]).read_ahead("train", 0) == [one]
    with pytest.raises(PluginError, match=r"'too long' is no rqat\.Problem"):
        source(["too long"]).read_ahead("train", 0)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (rqat.Problem("too long", level="fatal"), "level='fatal'"),  # type: ignore[arg-type]
        (rqat.Problem(None), "text=None"),  # type: ignore[arg-type]
    ],
)
def test_a_problem_has_a_text_and_a_level_there_is(made: rqat.Problem, says: str) -> None:
    with pytest.raises(PluginError, match=f"an rqat.Problem has {says}"):
        source(made).read_ahead("train", 0)


class Weighs(rqat.Options):
    """Options of an exporter that say anything at all of its file."""

    made: Any = None

    def bits_in_file(self, scheme: rqat.Scheme, in_features: int) -> Any:
        return self.made

    def bytes_beside(self, context: rqat.Context) -> Any:
        return self.made


@pytest.mark.parametrize("made", ["4", True, -4, math.nan, math.inf, [4]])
def test_sizes_of_a_file_are_numbers(made: Any) -> None:
    options = Weighs(made=made)
    with pytest.raises(PluginError, match=r"Weighs\.bits_in_file returned"):
        options.bits_in_file(rqat.Scheme.parse("w4g64"), 64)
    with pytest.raises(PluginError, match=r"Weighs\.bytes_beside returned"):
        options.bytes_beside(rqat.Context())


def test_sizes_of_a_file_that_are_right() -> None:
    assert Weighs().bits_in_file(rqat.Scheme.parse("w4g64"), 64) is None
    assert Weighs(made=4.5).bits_in_file(rqat.Scheme.parse("w4g64"), 64) == 4.5
    assert Weighs(made=4.5).bytes_beside(rqat.Context()) == 5
    assert rqat.Options().bytes_beside(rqat.Context()) == 0


def test_options_say_nothing_by_returning_nothing() -> None:
    class Options(rqat.Options):
        def check(self, context: rqat.Context) -> Any:
            return None

        def also_needs(self) -> Any:
            return None

    assert list(Options().check(rqat.Context())) == []
    assert list(Options().also_needs()) == []


@pytest.mark.parametrize("made", [None, {"kl": 1.0}, ({"kl": "small"}, []), ({"kl": 1.0}, [{"kl": 1.0}])])
def test_figures_of_a_comparison_are_numbers(made: Any) -> None:
    import torch

    class Compares(rqat.Comparison):
        def compare(self, *given: Any) -> Any:
            return made

    with pytest.raises(PluginError, match=r"Compares\.compare"):
        Compares(None).compare()
    made = ({"kl": torch.tensor(0.5)}, [{"kl": torch.tensor(0.5), "tokens": 3}])
    assert Compares(None).compare() == ({"kl": 0.5}, [{"kl": 0.5, "tokens": 3}])


def test_a_block_that_returns_nothing_is_told() -> None:
    class Forgets(rqat.Quantizer):
        def quantize_linear(self, *given: Any) -> Any: ...

        def quantize_block(self, *given: Any) -> Any: ...

    with pytest.raises(PluginError, match=r"Forgets\.quantize_block returned None"):
        Forgets(rqat.Options()).quantize_block()


class Exports(rqat.Exporter):
    made: Any = None

    def tensors(self, *given: Any) -> Any:
        return self.made

    def other(self, *given: Any) -> Any:
        return self.made

    def decode(self, *given: Any) -> Any:
        return self.made

    def config(self, *given: Any) -> Any:
        return self.made


@pytest.mark.parametrize("made", [None, [1], {"a.codes": [1]}])
@pytest.mark.parametrize("method", ["tensors", "other", "decode"])
def test_exporters_give_tensors(method: str, made: Any) -> None:
    exporter = Exports(rqat.Options())
    exporter.made = made
    with pytest.raises(PluginError, match=rf"Exports\.{method} returned"):
        getattr(exporter, method)()


def test_a_config_holds_what_json_knows() -> None:
    """A set became the text "{'lm_head'}" in config.json."""
    exporter = Exports(rqat.Options())
    for made, found in ((None, None), ({"w": rqat.Scheme.parse("w3g128"), "a": (1,)}, {"w": "w3g128", "a": [1]})):
        exporter.made = made
        assert exporter.config() == found
    for made in ({"skip": {"lm_head"}}, ["a"], 3):
        exporter.made = made
        with pytest.raises(PluginError, match=r"Exports\.config returned"):
            exporter.config()


def test_an_option_with_an_alias_goes_by_its_name_as_well() -> None:
    class Options(rqat.Options):
        rate: int = Field(default=1, alias="ra-te")

    assert Options(rate=2) == Options(**{"ra-te": 2})  # type: ignore[call-arg]
