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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..contracts import Row
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


@dataclass
class Prepared:
    """Rows ready for a trainer.

    Attributes:
        rows: columns `prompt` (text, or a list of one user message), `answer`, `prompt_tokens`; and, unless the
            objective writes its own completions, `completion`, `input_ids` and `labels` (-100 on the prompt).
        facts: how many rows were read, used and dropped.
    """

    rows: datasets.Dataset
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Example:
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
    return Prepared(_dataset(examples, order, tokenizer, rollouts=rollouts), facts)


def _tokenized(
    rows: Iterable[Row], tokenizer: transformers.PreTrainedTokenizerBase, *, rollouts: bool
) -> Iterator[_Example]:
    """Examples in the order of `rows`."""
    numbered = iter(enumerate(rows, start=1))
    while piece := list(itertools.islice(numbered, READ_AT_ONCE)):
        for number, row in piece:
            _check(number, row, rollouts=rollouts)
        prompts = [row.get("prompt", "") for _, row in piece]
        completions = ["" if rollouts else row.get("completion", row.get("text", "")) for _, row in piece]
        prompt_ids = encode_prompts(tokenizer, prompts)
        completion_ids = [[] for _ in piece] if rollouts else encode_completions(tokenizer, prompts, completions)
        for (_, row), prompt, completion, left, right in zip(
            piece, prompts, completions, prompt_ids, completion_ids, strict=True
        ):
            yield _Example(prompt, completion, row.get("answer", ""), left, right)


def _check(number: int, row: Row, *, rollouts: bool) -> None:
    if rollouts and not (row.get("prompt") and row.get("answer")):
        missing = "answer" if row.get("prompt") else "prompt"
        raise DataError(
            f"row {number} of the training data has no {missing}; learning from rewards needs one.",
            hint="Use a source whose rows have a prompt and an answer that can be graded.",
        )
    if not rollouts and not (row.get("text") or row.get("completion")):
        raise DataError(
            f"row {number} of the training data has neither a completion nor a text.",
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
    opened = bool(tokenizer.chat_template) and _opens_thinking(tokenizer)
    texts = [
        completion.lstrip().removeprefix(THINK).lstrip("\n") if opened and prompt else completion
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    end = tokenizer.eos_token_id
    return [ids if ids[-1:] == [end] else [*ids, end] for ids in _encode(tokenizer, texts, special=False)]


def _opens_thinking(tokenizer: transformers.PreTrainedTokenizerBase) -> bool:
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
    rollouts: bool,
) -> datasets.Dataset:
    """The dataset, in memory."""
    import datasets

    columns: dict[str, list[Any]] = {
        "prompt": [as_chat(tokenizer, e.prompt) for e in examples],
        "answer": [e.answer for e in examples],
        "prompt_tokens": [len(e.prompt_ids) for e in examples],
    }
    if not rollouts:
        columns["completion"] = [e.completion for e in examples]
        columns["input_ids"] = [e.prompt_ids + e.completion_ids for e in examples]
        columns["labels"] = [[IGNORED] * len(e.prompt_ids) + e.completion_ids for e in examples]
    return datasets.Dataset.from_dict({name: [values[i] for i in order] for name, values in columns.items()})


def context_of(model: transformers.PreTrainedModel) -> int:
    """Longest sequence, in tokens, the model was made for."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
