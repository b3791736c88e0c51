"""Compares a model with its original: rows of a task that does so, tokenized as training has them, and its figures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from ..contracts import Comparison, Row, TokenRow
from ..errors import DataError
from ..generation.prompts import encode_examples, placed
from .harness import Evaluation

if TYPE_CHECKING:
    import transformers

MOST_ROWS = 100_000
"""Rows that are read without a `limit`; a source that goes on is taken for endless."""


def rows_of(task: Comparison, name: str, limit: int | None) -> list[Row]:
    """The rows of a task.

    Args:
        name: of the task.
        limit: the first ones only.

    Raises:
        DataError: there are none, or they have no end and there is no limit.
    """
    rows = list(islice(task.rows(), MOST_ROWS if limit is None else limit))
    if not rows:
        raise DataError(f"The task '{name}' has no rows.", hint="Check its sources and its split.")
    if limit is None and len(rows) == MOST_ROWS:
        raise DataError(f"The task '{name}' has {MOST_ROWS:,} rows or more.", hint="Say how many to read with `limit`.")
    return rows


def tokenized(rows: Sequence[Row], tokenizer: transformers.PreTrainedTokenizerBase) -> list[TokenRow]:
    """Rows as the model gets them.

    Raises:
        DataError, ModelError: see `encode_examples`.
    """
    encoded = encode_examples(rows, tokenizer, placed(rows))
    return [TokenRow((*prompt.tokens, *after), len(prompt.tokens)) for prompt, after in encoded]


def compare(
    task: Comparison,
    model: transformers.PreTrainedModel,
    original: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    rows: Sequence[TokenRow],
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """What `Comparison.compare` finds; both models are afterwards as they were before."""
    import torch

    modes = [(each, each.training) for each in (model, original)]
    try:
        with torch.no_grad():
            figures, per_row = task.compare(model.eval(), original.eval(), tokenizer, rows, advance)
    finally:
        for each, training in modes:
            each.train(training)
    return dict(figures), [dict(row) for row in per_row]


def run_comparison(
    task: Comparison,
    name: str,
    data: str,
    model: transformers.PreTrainedModel,
    original: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    rows: Sequence[Row],
    report: Callable[[float, str], None],
) -> Evaluation:
    """Figures of a model beside its original.

    Args:
        name: of the task.
        data: what its rows are called.
        report: receives how many rows are done.

    Raises:
        DataError: a row cannot be tokenized, or no token counts.
    """
    tokens = tokenized(rows, tokenizer)
    began = time.perf_counter()
    figures, per_row = compare(task, model, original, tokenizer, tokens, lambda done: report(done, ""))
    report(len(rows), "  ".join(f"{figure} {value:.4g}" for figure, value in figures.items()))
    results = {
        "task": name,
        "data": data,
        "figures": figures,
        "n": len(rows),
        "tokens": int(sum(row["tokens"] for row in per_row)),
        "seconds": round(time.perf_counter() - began, 3),
        "rows_hash": hashlib.sha256(repr([row.tokens for row in tokens]).encode()).hexdigest(),
        "notes": [],
    }
    return Evaluation(results, [{"index": index, **row} for index, row in enumerate(per_row)])
