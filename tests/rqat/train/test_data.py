"""From rows to the dataset a trainer takes: tokens, labels, order, and what is dropped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rqat import IGNORED
from rqat.contracts import Row
from rqat.errors import DataError
from rqat.train.data import check_rows, completion_room, dropped_rows, prepare_rows, uses
from tests.tiny import tiny_tokenizer
from tests.training import Sums


def endless() -> Iterator[Row]:
    return Sums().rows("train", 0)


def test_tokens_are_prompt_completion_and_end_with_labels_on_the_completion() -> None:
    tokenizer = tiny_tokenizer()
    rows = prepare_rows(
        [{"prompt": "1+2=", "completion": "3", "answer": "3"}], tokenizer, steps=1, batch=1, max_tokens=9, seed=0
    ).rows
    row = rows[0]
    assert tokenizer.decode(row["input_ids"]) == "1+2=3<eos>"
    assert row["labels"] == [IGNORED] * 4 + row["input_ids"][4:]
    assert (row["prompt"], row["answer"], row["prompt_tokens"]) == ("1+2=", "3", 4)


def test_plain_text_is_learned_from_its_first_token() -> None:
    row = prepare_rows([{"text": "abc"}], tiny_tokenizer(), steps=1, batch=1, max_tokens=9, seed=0).rows[0]
    assert row["labels"] == row["input_ids"]
    assert len(row["labels"]) == 4


def test_an_end_token_that_is_there_already_is_not_doubled() -> None:
    tokenizer = tiny_tokenizer()
    row = prepare_rows(
        [{"prompt": "a", "completion": "b<eos>"}], tokenizer, steps=1, batch=1, max_tokens=9, seed=0
    ).rows[0]
    assert row["input_ids"].count(tokenizer.eos_token_id) <= 1


def test_a_chat_template_wraps_the_prompt() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    rows = prepare_rows([{"prompt": "hi", "completion": "yo"}], tokenizer, steps=1, batch=1, max_tokens=20, seed=0).rows
    assert tokenizer.decode(rows[0]["input_ids"]) == "[hi]>yo<eos>"
    assert rows[0]["prompt"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("completion", ["<think>\n1+1</think>2", "1+1</think>2"])
def test_a_template_that_opens_thinking_is_not_followed_by_a_trace_that_does(completion: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    given = [{"prompt": "hi", "completion": completion}]
    rows = prepare_rows(given, tokenizer, steps=1, batch=1, max_tokens=60, seed=0).rows
    assert tokenizer.decode(rows[0]["input_ids"]) == "[hi]<think>\n1+1</think>2<eos>"


def test_holds_exactly_the_rows_of_all_steps_and_stops_reading() -> None:
    seen = 0

    def counted() -> Iterator[Row]:
        nonlocal seen
        for row in endless():
            seen += 1
            yield row

    prepared = prepare_rows(counted(), tiny_tokenizer(), steps=5, batch=4, max_tokens=100, seed=0)
    assert len(prepared.rows) == 20
    assert seen < 600
    assert prepared.facts == {"rows_read": 20, "rows_used": 20, "rows_dropped_too_long": 0}


def test_a_small_source_is_repeated_and_every_row_used_equally() -> None:
    rows = list(itertools.islice(endless(), 6))
    prepared = prepare_rows(rows, tiny_tokenizer(), steps=6, batch=3, max_tokens=100, seed=0)
    used = sorted(row["prompt"] for row in prepared.rows)
    assert used == sorted(row["prompt"] for row in rows for _ in range(3))


def test_the_seed_decides_the_order_and_nothing_else() -> None:
    def order(seed: int) -> list[str]:
        return prepare_rows(endless(), tiny_tokenizer(), steps=5, batch=4, max_tokens=100, seed=seed).rows["prompt"][:]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))


def test_batches_hold_rows_of_similar_length() -> None:
    prepared = prepare_rows(endless(), tiny_tokenizer(), steps=16, batch=8, max_tokens=100, seed=0)
    lengths = [len(ids) for ids in prepared.rows["input_ids"]]
    padded = sum(8 * max(lengths[i : i + 8]) for i in range(0, len(lengths), 8))
    assert padded < 1.12 * sum(lengths)
    firsts = [lengths[i] for i in range(0, len(lengths), 8)]
    assert firsts != sorted(firsts)


def test_long_rows_are_dropped_and_counted() -> None:
    prepared = prepare_rows(
        list(itertools.islice(endless(), 30)), tiny_tokenizer(), steps=1, batch=50, max_tokens=14, seed=0
    )
    assert prepared.facts["rows_dropped_too_long"] > 0
    assert prepared.facts["longest_dropped_tokens"] > 14
    assert max(len(ids) for ids in prepared.rows["input_ids"]) <= 14


def test_rollouts_keep_prompts_and_answers_only() -> None:
    prepared = prepare_rows(
        endless(), tiny_tokenizer(), steps=2, batch=4, max_tokens=100, seed=0, writes=True, graded=True
    )
    assert set(prepared.rows.column_names) == {"prompt", "answer", "prompt_tokens", "prompt_ids", "row"}
    for row in prepared.rows:
        assert prepared.source[row["row"]]["prompt"] == row["prompt"]


def test_prompts_alone_will_do_for_an_objective_that_writes_and_is_not_graded() -> None:
    prepared = prepare_rows([{"prompt": "ab"}], tiny_tokenizer(), steps=1, batch=2, max_tokens=9, seed=0, writes=True)
    assert prepared.rows["prompt"][:] == ["ab", "ab"]


def test_a_source_row_knows_its_place() -> None:
    rows: list[Row] = [{"prompt": "a" * 30, "completion": "b"}, {"prompt": "a", "completion": "b"}]
    rows.append({"prompt": "c", "completion": "d", "place": "data.jsonl:7"})
    prepared = prepare_rows(rows, tiny_tokenizer(), steps=1, batch=2, max_tokens=20, seed=0)
    assert [row["place"] for row in prepared.source] == ["row 2 of the training data", "data.jsonl:7"]
    assert prepared.facts["first_dropped"] == "row 1 of the training data"
    assert dropped_rows(prepared.facts, 20) == (
        "1 of 3 rows are longer than max_tokens=20 and are left out "
        "(up to 32 tokens; the first is row 1 of the training data)."
    )


def problems(rows: list[Row], **flags: Any) -> list[tuple[str, str, str]]:
    found = check_rows(rows, tiny_tokenizer(), max_tokens=20, **flags)
    return [(problem.level, problem.key, problem.text) for problem in found]


def test_rows_are_checked_before_any_work() -> None:
    assert not problems([{"prompt": "a", "completion": "b"}])
    assert not problems([{"prompt": "a"}], writes=True)
    both: list[Row] = [{"prompt": "a", "answer": "b"}, {"prompt": "a", "place": "data.jsonl:4"}]
    assert problems(both, writes=True, graded=True) == [
        ("error", "data", "data.jsonl:4 has no answer; learning from rewards needs one.")
    ]
    assert problems(both[:1]) == [("error", "data", "row 1 of the training data has neither a completion nor a text.")]
    long: Row = {"prompt": "a" * 30, "completion": "b"}
    assert problems([long, long]) == [
        ("error", "max_tokens", "all 2 rows are longer than max_tokens=20 (up to 32 tokens).")
    ]
    assert problems([{"text": "b"}, long, long])[0][0] == "warning"
    [(level, key, text)] = problems([{"text": "b"}, long])
    assert (level, key) == ("note", "max_tokens")
    assert text.startswith("1 of 2 rows are longer than max_tokens=20 and are left out")
    assert problems([]) == [("error", "data", "the source has no rows to train on.")]


def test_completions_get_the_room_that_the_longest_prompt_leaves() -> None:
    rows = prepare_rows(endless(), tiny_tokenizer(), steps=1, batch=8, max_tokens=60, seed=0, writes=True).rows
    longest = max(rows["prompt_tokens"])
    for asked, expected in ((None, 60 - longest), (5, 5), (1000, 60 - longest)):
        assert completion_room(rows, 60, SimpleNamespace(max_completion_tokens=asked)) == expected
    assert completion_room(rows, 60, SimpleNamespace()) == 60 - longest


def test_less_room_than_was_asked_for_and_rows_used_twice_are_told() -> None:
    rows: list[Row] = [
        {"prompt": "a" * 15, "answer": "b"},
        {"prompt": "a" * 30, "answer": "b"},
        {"prompt": "a", "answer": "b"},
    ]
    looks: Any = {"writes": True, "graded": True}
    dropped, room = problems(rows, **looks, completion_tokens=6)
    assert dropped[0] == "note"
    assert room == (
        "warning",
        "max_tokens",
        "completions end after 5 tokens, all that the longest prompt leaves; 6 were asked for.",
    )
    assert len(problems(rows, **looks, completion_tokens=5)) == 1
    [note] = problems(rows[:1], **looks, most=8, taken=8)
    assert note == ("note", "data", "there are 1 rows, and training takes 8: each is used about 8 times.")
    assert not problems(rows[:1] * 8, **looks, most=8, taken=8)
    assert not problems(rows[:1] * 2, **looks, most=8, taken=2)


def test_rows_that_are_used_are_counted() -> None:
    given: Any = {"max_tokens": 100, "seed": 0, "writes": True}
    few = prepare_rows(list(itertools.islice(endless(), 6)), tiny_tokenizer(), steps=6, batch=3, **given).rows
    assert uses(few, 18) == {"rows_used": 6, "times_used": 3.0}
    many = prepare_rows(endless(), tiny_tokenizer(), steps=6, batch=8, **given).rows
    assert uses(many, 12) == {"rows_used": 12}  # four completions of each prompt


@pytest.mark.parametrize(
    ("rows", "rollouts", "message"),
    [
        ([], False, "no rows"),
        ([{"prompt": "a"}], False, "row 1 of the training data has neither"),
        ([{"prompt": "a", "completion": "b"}], True, "row 1 of the training data has no answer"),
        ([{"prompt": "a", "answer": " "}], True, "row 1 of the training data has no answer"),
        ([{"text": "b"}], True, "row 1 of the training data has no prompt"),
        (
            [{"prompt": "a" * 50, "completion": "b", "answer": "b"}] * 3,
            False,
            "all 3 rows are longer than max_tokens=20",
        ),
        ([{"prompt": "a" * 20, "answer": "b"}], True, "all 1 prompts are longer"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(rows: list[Row], rollouts: bool, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_rows(rows, tiny_tokenizer(), steps=1, batch=2, max_tokens=20, seed=0, writes=rollouts, graded=rollouts)


def test_an_endless_source_of_rows_that_are_all_too_long_is_given_up() -> None:
    with pytest.raises(DataError, match="longer than max_tokens=2"):
        prepare_rows(endless(), tiny_tokenizer(), steps=1, batch=2, max_tokens=2, seed=0)
