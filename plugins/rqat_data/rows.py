"""What all sources of this plugin share: a record becomes a row, rows are split and shuffled by hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import rqat

T = TypeVar("T")
FIELDS = ("text", "prompt", "completion", "answer")


def make_row(record: Any, fields: Mapping[Any, str], place: Callable[[], str]) -> rqat.Row:
    """Picks a row's fields out of a record.

    Args:
        record: one line of a file or one example of a data set.
        fields: names in the record by names in the row, as `inside` reads them; empty when they are the same.
        place: says where the record is, for the row's `place` and for errors.
    """
    if not isinstance(record, Mapping):
        raise rqat.DataError(f"{place()}: not an object.", hint='Write one object per line: {"text": "..."}.')
    names = dict(fields) or {field: field for field in FIELDS if field in record}
    row = {}
    for field, name in names.items():
        value = inside(record, name)
        if isinstance(value, int | float) and not isinstance(value, bool) and field == "answer":
            value = str(value)
        if not isinstance(value, str):
            there = "is null" if holds(record, name) else "is missing"
            what = there if value is None else f"is not a text but {type(value).__name__}"
            raise rqat.DataError(
                f"{place()}: the field '{name}' {what}.",
                hint=f"Fields here: {', '.join(map(str, record)) or 'none'}. Name others with `fields`.",
            )
        if found := re.search("[\ud800-\udfff]", value):
            raise rqat.DataError(
                f"{place()}: character {found.start() + 1} of the field '{name}' is half of a pair "
                f"({ascii(found[0])[1:-1]}), which is no text.",
                hint="It was cut in the middle or is in another encoding; mend the data.",
            )
        row[field] = value
    if not ("text" in row or "prompt" in row):
        raise rqat.DataError(
            f"{place()}: neither 'text' nor 'prompt'.",
            hint=f"Fields here: {', '.join(map(str, record)) or 'none'}. Map them: fields: {{prompt: NAME, ...}}",
        )
    return cast(rqat.Row, row | {"place": place()})


def inside(record: Mapping[str, Any], name: str) -> Any:
    """The value called `name`, or the one that `generations.0` and the like lead to; None when there is none."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def holds(record: Mapping[str, Any], name: str) -> bool:
    """Whether a record has the field called `name`, be it null."""
    outer, _, last = name.rpartition(".")
    inner = inside(record, outer) if outer else record
    return name in record or (isinstance(inner, Mapping) and last in inner)


def identity(row: rqat.Row) -> str:
    """What decides the split of a row: its text or prompt, so that one problem never has solutions in two splits."""
    return row["text"] if "text" in row else row["prompt"]


def in_split(rows: Sequence[rqat.Row], split: rqat.Split, validation: float, what: str) -> list[rqat.Row]:
    """The rows of one split, in their order; `validation` is the share of that split, and there is no test split."""
    if split == "test":
        raise rqat.DataError(f"{what} has no split 'test'.", hint="Use 'train' or 'validation'.")
    return [row for row in rows if (_share(identity(row)) < validation) == (split == "validation")]


def shuffled(rows: Sequence[T], seed: int, *, shuffle: bool = True) -> Iterator[T]:
    """The rows in an order decided by the seed alone, the same in every version of Python."""
    order: Sequence[int] = range(len(rows))
    if shuffle:
        order = sorted(order, key=lambda index: hashlib.sha256(f"{seed}/{index}".encode()).digest())
    return (rows[index] for index in order)


def not_empty(rows: list[T], what: str) -> list[T]:
    """The rows, of which there must be some."""
    if not rows:
        raise rqat.DataError(f"{what} is empty.", hint="Check the path and the split.")
    return rows


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
