"""Training rows: from a source's prompts and completions to the dataset a TRL trainer takes.

Tokens are `prompt + completion + end`, prompt and completion tokenized apart, as they will be when the model is used
(see `rqat.generation.prompts`).

The dataset holds exactly `steps * batch` rows in the order in which they are used, so that a resumed run only has to
skip rows. When the source has fewer, they are repeated, each time shuffled anew. Rows of similar length share a batch:
within stretches of `STRETCH` batches rows are sorted by length, then the batches of the stretch are shuffled.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from ..contracts import IGNORED, Level, Problem, Row
from ..errors import DataError
from ..generation.prompts import completion_of, conversation, encode_examples, encode_prompts, for_trainer
from ..generation.sampling import too_little_room

if TYPE_CHECKING:
    import datasets
    import transformers

STRETCH = 8
"""Batches among which rows are sorted by length."""

READ_AT_ONCE = 256
"""Rows tokenized in one call."""

HOPELESS = 5000
"""Rows after which an endless source of which none was short enough is given up."""


@dataclass
class Prepared:
    """Rows ready for a trainer.

    Attributes:
        rows: columns `prompt` (text, or messages), `answer`, `prompt_tokens`, `row` (its index in `source`);
            `prompt_ids` where the objective writes its own completions, else `completion`, `input_ids` and `labels`
            (`IGNORED` on the prompt).
        source: the source's rows that are used, as they came, each with its `place`.
        facts: how many rows were read, used and dropped.
    """

    rows: datasets.Dataset
    source: list[Row] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Example:
    number: int
    row: Row
    prompt: Any
    completion: str
    answer: str
    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def prepare_rows(
    rows: Iterable[Row],
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    steps: int,
    batch: int,
    max_tokens: int,
    seed: int,
    writes: bool = False,
    graded: bool = False,
) -> Prepared:
    """Reads, tokenizes, filters and orders rows.

    Args:
        rows: of a source; may be endless.
        batch: rows per optimizer step.
        max_tokens: rows with more tokens are dropped and counted.
        writes: the objective writes its own completions: rows need a prompt, and only the prompt's length counts.
        graded: the objective is trained on rewards: rows need an answer.

    Raises:
        DataError: no row is left, or a row lacks what the objective needs.
    """
    wanted = steps * batch
    examples: list[_Example] = []
    read, long = 0, TooLong(max_tokens, writes)
    for example in _tokenized(rows, tokenizer, writes=writes, graded=graded):
        read += 1
        if not long.found(example):
            examples.append(example)
        if len(examples) == wanted or (not examples and long.count >= HOPELESS):
            break
    if not examples:
        _none_left(read, long)
    order = _order([0 if writes else e.tokens for e in examples], wanted, batch, seed)
    dataset = _dataset(examples, order, writes=writes)
    source: list[Row] = [{**e.row, "place": place_of(e.row, e.number)} for e in examples]
    return Prepared(dataset, source, long.facts(read))


def check_rows(
    rows: Iterable[Row],
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    writes: bool = False,
    graded: bool = False,
    max_tokens: int,
    completion_tokens: int | None = None,
    most: int = 0,
    taken: int = 0,
) -> Iterator[Problem]:
    """What `prepare_rows` would refuse or leave out, found before any work and without torch.

    Args:
        rows: as many as are to be looked at.
        completion_tokens: what completions may have by the objective's options; None is as many as there is room for.
        most: how many there would be of a source that does not end before.
        taken: how many rows training takes.

    Yields:
        An error where a row lacks what the objective needs or none is short enough, with the first such row; a note
        with a count where some are too long, a warning where more than half are; a warning where the longest prompt
        leaves less room than is asked for; a note where rows are used more than once. `key` is "data" or "max_tokens".
    """
    read, long, longest = 0, TooLong(max_tokens, writes), 0
    try:
        for example in _tokenized(rows, tokenizer, writes=writes, graded=graded):
            read += 1
            if not long.found(example):
                longest = max(longest, len(example.prompt_ids))
        if long.count == read:
            _none_left(read, long)
    except DataError as error:
        key = "max_tokens" if read and long.count == read else "data"
        yield Problem(error.message, error.hint, key)
        return
    if long.count:
        text = dropped_rows(long.facts(read), max_tokens)
        level: Level = "warning" if 2 * long.count > read else "note"
        yield Problem(text, "Raise max_tokens to keep them.", "max_tokens", level)
    if writes and (text := too_little_room(max_tokens - longest, completion_tokens)):
        yield Problem(text, "Raise max_tokens, or use shorter prompts.", "max_tokens", "warning")
    kept = read - long.count
    if read < most and kept < taken:
        text = f"there are {kept} rows, and training takes {taken}: each is used about {taken / kept:.3g} times."
        yield Problem(text, "More rows, or fewer steps, use each less often.", "data", "note")


def dropped_rows(facts: Mapping[str, Any], max_tokens: int) -> str:
    """How many rows were left out as too long, and the first of them, in a sentence; `facts` of a `Prepared`."""
    return (
        f"{facts['rows_dropped_too_long']} of {facts['rows_read']} rows are longer than max_tokens={max_tokens} and "
        f"are left out (up to {facts['longest_dropped_tokens']} tokens; the first is {facts['first_dropped']})."
    )


class TooLong:
    """Counts examples that have more than `max_tokens` tokens, or no room for a completion.

    Attributes:
        count: how many there are.
        longest: tokens of the longest.
        first: where the first stands in the data.
    """

    def __init__(self, max_tokens: int, writes: bool) -> None:
        self.max_tokens, self.writes = max_tokens, writes
        self.count = self.longest = 0
        self.first = ""

    def found(self, example: _Example) -> bool:
        """Whether an example is too long; if so, it is counted."""
        if example.tokens + self.writes <= self.max_tokens:
            return False
        self.count += 1
        self.longest = max(self.longest, example.tokens)
        self.first = self.first or place_of(example.row, example.number)
        return True

    def facts(self, read: int) -> dict[str, Any]:
        """Counts for the manifest; nothing of the dropped where there are none."""
        facts: dict[str, Any] = {"rows_read": read, "rows_used": read - self.count, "rows_dropped_too_long": self.count}
        return facts | ({"longest_dropped_tokens": self.longest, "first_dropped": self.first} if self.count else {})


def _none_left(read: int, long: TooLong) -> NoReturn:
    if not read:
        raise DataError("the source has no rows to train on.", hint="Choose another split or source.")
    what = "prompts are" if long.writes else "rows are"
    raise DataError(
        f"all {read} {what} longer than max_tokens={long.max_tokens} (up to {long.longest} tokens).",
        hint="Raise max_tokens, within the model's context, or use shorter data.",
    )


def place_of(row: Row, number: int) -> str:
    """Where a row was read, if its source says so; else which one of the training data it is, counted from 1."""
    return row.get("place") or f"row {number} of the training data"


def _tokenized(
    rows: Iterable[Row], tokenizer: transformers.PreTrainedTokenizerBase, *, writes: bool, graded: bool
) -> Iterator[_Example]:
    """Examples in the order of `rows`."""
    numbered = iter(enumerate(rows, start=1))
    while piece := list(itertools.islice(numbered, READ_AT_ONCE)):
        for number, row in piece:
            _check(number, row, writes=writes, graded=graded)
        read = [row for _, row in piece]
        places = [place_of(row, number) for number, row in piece]
        place = places.__getitem__
        if writes:
            encoded = [(prompt, list[int]()) for prompt in encode_prompts(read, tokenizer, place=place)]
        else:
            encoded = encode_examples(read, tokenizer, place)
        for (number, row), (prompt, after) in zip(piece, encoded, strict=True):
            completion = "" if writes else completion_of(row)
            asked = for_trainer(row, tokenizer)
            yield _Example(number, row, asked, completion, row.get("answer", ""), list(prompt.tokens), after)


def _check(number: int, row: Row, *, writes: bool, graded: bool) -> None:
    if writes and not conversation(row):
        raise DataError(
            f"{place_of(row, number)} has no prompt; an objective that writes completions needs one.",
            hint="Use a source whose rows have a prompt.",
        )
    if graded and not row.get("answer", "").strip():
        raise DataError(
            f"{place_of(row, number)} has no answer; learning from rewards needs one.",
            hint="Use a source whose rows have a prompt and an answer that can be graded.",
        )
    if not writes and not completion_of(row):
        raise DataError(
            f"{place_of(row, number)} has neither a completion nor a text.",
            hint="Use a source whose rows can be imitated.",
        )


def _order(lengths: Sequence[int], wanted: int, batch: int, seed: int) -> list[int]:
    """`wanted` indices into `lengths`: shuffled epochs, batches of similar length."""
    generator = random.Random(seed)
    order: list[int] = []
    while len(order) < wanted:
        epoch = list(range(len(lengths)))
        generator.shuffle(epoch)
        order += epoch
    del order[wanted:]
    result: list[int] = []
    for start in range(0, wanted, STRETCH * batch):
        stretch = sorted(order[start : start + STRETCH * batch], key=lambda index: lengths[index])
        batches = [stretch[i : i + batch] for i in range(0, len(stretch), batch)]
        generator.shuffle(batches)
        result += itertools.chain.from_iterable(batches)
    return result


def _dataset(
    examples: Sequence[_Example],
    order: Sequence[int],
    *,
    writes: bool,
) -> datasets.Dataset:
    """The dataset, in memory."""
    import datasets

    columns: dict[str, list[Any]] = {
        "prompt": [e.prompt for e in examples],
        "answer": [e.answer for e in examples],
        "prompt_tokens": [len(e.prompt_ids) for e in examples],
        "row": list(range(len(examples))),
    }
    if writes:
        columns["prompt_ids"] = [e.prompt_ids for e in examples]
    else:
        columns["completion"] = [e.completion for e in examples]
        columns["input_ids"] = [e.prompt_ids + e.completion_ids for e in examples]
        columns["labels"] = [[IGNORED] * len(e.prompt_ids) + e.completion_ids for e in examples]
    return datasets.Dataset.from_dict({name: [values[i] for i in order] for name, values in columns.items()})


def completion_room(rows: datasets.Dataset, max_tokens: int, options: Any) -> int:
    """Longest completion, in tokens, of an objective that writes: the room that the longest prompt leaves.

    Args:
        rows: prepared with `writes`.
        options: of the objective; a `max_completion_tokens` among them may ask for less.
    """
    room = max_tokens - max(rows["prompt_tokens"])
    return min(room, getattr(options, "max_completion_tokens", None) or room)


def uses(rows: datasets.Dataset, taken: int) -> dict[str, Any]:
    """How many different rows training uses, which takes the first so many; and how often, if more than once."""
    used = len({*rows["row"][:taken]})
    return {"rows_used": used, **({"times_used": round(taken / used, 2)} if taken > used else {})}
