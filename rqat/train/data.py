"""Training rows: from a source's prompts and completions to the dataset a TRL trainer takes.

Tokens are `prompt + completion + end`, prompt and completion tokenized apart, as they will be when the model is used.
A tokenizer with a chat template gets the prompt as one user turn.

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

from ..contracts import Problem, Row
from ..errors import DataError

if TYPE_CHECKING:
    import datasets
    import transformers

IGNORED = -100
"""Label of a position that is not learned from."""

STRETCH = 8
"""Batches among which rows are sorted by length."""

THINK = "<think>"

READ_AT_ONCE = 256
"""Rows tokenized in one call."""

HOPELESS = 5000
"""Rows after which an endless source of which none was short enough is given up."""

CHECKED = 2000
"""Rows that `check_rows` looks at, unless told otherwise: about a second of a fast tokenizer's time."""


@dataclass
class Prepared:
    """Rows ready for a trainer.

    Attributes:
        rows: columns `prompt` (text, or a list of one user message), `answer`, `prompt_tokens`, `row` (its index in
            `source`); and, unless the objective writes its own completions, `completion`, `input_ids` and `labels`
            (-100 on the prompt).
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
    prompt: str
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
    dataset = _dataset(examples, order, tokenizer, writes=writes)
    source: list[Row] = [{**e.row, "place": place_of(e.row, e.number)} for e in examples]
    return Prepared(dataset, source, long.facts(read))


def check_rows(
    rows: Iterable[Row],
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    writes: bool = False,
    graded: bool = False,
    max_tokens: int,
    limit: int = CHECKED,
) -> Iterator[Problem]:
    """What `prepare_rows` would refuse or leave out, found before any work and without torch.

    Args:
        limit: rows looked at; a source may be endless.

    Yields:
        An error where a row lacks what the objective needs or none is short enough, with the first such row; a warning
        with a count where some are too long. `key` is "data" or "max_tokens".
    """
    read, long = 0, TooLong(max_tokens, writes)
    try:
        for example in _tokenized(itertools.islice(rows, limit), tokenizer, writes=writes, graded=graded):
            read += 1
            long.found(example)
        if long.count == read:
            _none_left(read, long)
    except DataError as error:
        key = "max_tokens" if read and long.count == read else "data"
        yield Problem(error.message, error.hint, key)
        return
    if long.count:
        text = dropped_rows(long.facts(read), max_tokens)
        yield Problem(text, "Raise max_tokens to keep them.", "max_tokens", "warning")


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
        prompts = [row.get("prompt", "") for _, row in piece]
        completions = ["" if writes else row.get("completion", row.get("text", "")) for _, row in piece]
        prompt_ids = encode_prompts(tokenizer, prompts)
        completion_ids = [[] for _ in piece] if writes else encode_completions(tokenizer, prompts, completions)
        for (number, row), prompt, completion, left, right in zip(
            piece, prompts, completions, prompt_ids, completion_ids, strict=True
        ):
            yield _Example(number, row, prompt, completion, row.get("answer", ""), left, right)


def _check(number: int, row: Row, *, writes: bool, graded: bool) -> None:
    if writes and not row.get("prompt"):
        raise DataError(
            f"{place_of(row, number)} has no prompt; an objective that writes completions needs one.",
            hint="Use a source whose rows have a prompt.",
        )
    if graded and not row.get("answer"):
        raise DataError(
            f"{place_of(row, number)} has no answer; learning from rewards needs one.",
            hint="Use a source whose rows have a prompt and an answer that can be graded.",
        )
    if not writes and not (row.get("text") or row.get("completion")):
        raise DataError(
            f"{place_of(row, number)} has neither a completion nor a text.",
            hint="Use a source whose rows can be imitated.",
        )


def as_chat(tokenizer: transformers.PreTrainedTokenizerBase, prompt: str) -> Any:
    """The prompt as TRL takes it: one user message for a tokenizer with a chat template, else the text itself."""
    return [{"role": "user", "content": prompt}] if tokenizer.chat_template else prompt


def encode_prompts(tokenizer: transformers.PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts as the model meets them when it is used; an empty prompt has at most a start token."""
    if not tokenizer.chat_template:
        return _encode(tokenizer, prompts, special=True)
    empty = [index for index, prompt in enumerate(prompts) if not prompt]
    texts = [
        "" if not prompt else str(
            tokenizer.apply_chat_template(as_chat(tokenizer, prompt), add_generation_prompt=True, tokenize=False)
        )
        for prompt in prompts
    ]  # fmt: skip
    ids = _encode(tokenizer, texts, special=False)
    for index in empty:
        ids[index] = _encode(tokenizer, [""], special=True)[0]
    return ids


def encode_completions(
    tokenizer: transformers.PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> list[list[int]]:
    """Token ids of what follows `prompts`, each ended by the end token.

    Some templates open `<think>` for the model; a trace that opens it once more would teach to do so.
    """
    opened = bool(tokenizer.chat_template) and opens_thinking(tokenizer)
    texts = [
        completion.lstrip().removeprefix(THINK).lstrip("\n") if opened and prompt else completion
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    end = tokenizer.eos_token_id
    return [ids if ids[-1:] == [end] else [*ids, end] for ids in _encode(tokenizer, texts, special=False)]


def opens_thinking(tokenizer: transformers.PreTrainedTokenizerBase) -> bool:
    rendered = tokenizer.apply_chat_template(as_chat(tokenizer, "?"), add_generation_prompt=True, tokenize=False)
    return str(rendered).rstrip().endswith(THINK)


def _encode(tokenizer: transformers.PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    # Too long ones are told by whoever asks, or joined and cut: verbose=False silences the tokenizer's own warning.
    encoded = tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
    if special and tokenizer.eos_token_id is not None:
        # Some tokenizers end every text with their end token; a prompt must not end there.
        encoded = [ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids for ids in encoded]
    return [list(ids) for ids in encoded]


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
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    writes: bool,
) -> datasets.Dataset:
    """The dataset, in memory."""
    import datasets

    columns: dict[str, list[Any]] = {
        "prompt": [as_chat(tokenizer, e.prompt) for e in examples],
        "answer": [e.answer for e in examples],
        "prompt_tokens": [len(e.prompt_ids) for e in examples],
        "row": list(range(len(examples))),
    }
    if not writes:
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


def context_of(model: transformers.PreTrainedModel) -> int:
    """Longest sequence, in tokens, the model was made for."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
