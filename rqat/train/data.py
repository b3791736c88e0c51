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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..contracts import Row
from ..errors import DataError
from ..generation.prompts import completion_of, conversation, encode_examples, encode_prompts, for_trainer

if TYPE_CHECKING:
    import datasets
    import transformers

IGNORED = -100
"""Label of a position that is not learned from."""

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
        rows: columns `prompt` (text, or messages), `answer`, `prompt_tokens`; `prompt_ids` where the objective writes
            its own completions, else `completion`, `input_ids` and `labels` (-100 on the prompt).
        facts: how many rows were read, used and dropped.
    """

    rows: datasets.Dataset
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Example:
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
    rollouts: bool = False,
) -> Prepared:
    """Reads, tokenizes, filters and orders rows.

    Args:
        rows: of a source; may be endless.
        batch: rows per optimizer step.
        max_tokens: rows with more tokens are dropped and counted.
        rollouts: the objective writes its own completions: rows need a prompt and an answer, and only the prompt's
            length counts.

    Raises:
        DataError: no row is left, or a row lacks what the objective needs.
    """
    wanted = steps * batch
    examples: list[_Example] = []
    read = dropped = longest_dropped = 0
    for example in _tokenized(rows, tokenizer, rollouts=rollouts):
        read += 1
        if example.tokens + rollouts <= max_tokens:
            examples.append(example)
        else:
            dropped += 1
            longest_dropped = max(longest_dropped, example.tokens)
        if len(examples) == wanted or (not examples and dropped >= HOPELESS):
            break
    if not examples:
        if not read:
            raise DataError("the source has no rows to train on.", hint="Choose another split or source.")
        what = "prompts are" if rollouts else "rows are"
        raise DataError(
            f"all {read} {what} longer than max_tokens={max_tokens} (up to {longest_dropped} tokens).",
            hint="Raise max_tokens, within the model's context, or use shorter data.",
        )
    order = _order([0 if rollouts else e.tokens for e in examples], wanted, batch, seed)
    facts = {"rows_read": read, "rows_used": len(examples), "rows_dropped_too_long": dropped}
    if dropped:
        facts["longest_dropped_tokens"] = longest_dropped
    return Prepared(_dataset(examples, order, rollouts=rollouts), facts)


def _tokenized(
    rows: Iterable[Row], tokenizer: transformers.PreTrainedTokenizerBase, *, rollouts: bool
) -> Iterator[_Example]:
    """Examples in the order of `rows`."""
    numbered = iter(enumerate(rows, start=1))
    while piece := list(itertools.islice(numbered, READ_AT_ONCE)):
        for number, row in piece:
            _check(number, row, rollouts=rollouts)
        read, first = [row for _, row in piece], piece[0][0]

        def place(index: int, first: int = first) -> str:
            return f"row {first + index} of the training data"

        if rollouts:
            encoded = [(prompt, list[int]()) for prompt in encode_prompts(read, tokenizer, place=place)]
        else:
            encoded = encode_examples(read, tokenizer, place)
        for row, (prompt, after) in zip(read, encoded, strict=True):
            completion = "" if rollouts else completion_of(row)
            asked = for_trainer(row, tokenizer)
            yield _Example(asked, completion, row.get("answer", ""), list(prompt.tokens), after)


def _check(number: int, row: Row, *, rollouts: bool) -> None:
    if rollouts and not (conversation(row) and row.get("answer")):
        missing = "answer" if conversation(row) else "prompt"
        raise DataError(
            f"row {number} of the training data has no {missing}; learning from rewards needs one.",
            hint="Use a source whose rows have a prompt and an answer that can be graded.",
        )
    if not rollouts and not completion_of(row):
        raise DataError(
            f"row {number} of the training data has neither a completion nor a text.",
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
    rollouts: bool,
) -> datasets.Dataset:
    """The dataset, in memory."""
    import datasets

    columns: dict[str, list[Any]] = {
        "prompt": [e.prompt for e in examples],
        "answer": [e.answer for e in examples],
        "prompt_tokens": [len(e.prompt_ids) for e in examples],
    }
    if rollouts:
        columns["prompt_ids"] = [e.prompt_ids for e in examples]
    else:
        columns["completion"] = [e.completion for e in examples]
        columns["input_ids"] = [e.prompt_ids + e.completion_ids for e in examples]
        columns["labels"] = [[IGNORED] * len(e.prompt_ids) + e.completion_ids for e in examples]
    return datasets.Dataset.from_dict({name: [values[i] for i in order] for name, values in columns.items()})
