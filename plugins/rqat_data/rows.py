"""What all sources of this plugin share: a record becomes a row, rows are split and shuffled by hashes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import rqat

from . import RowsOptions
from .conversations import first_question, opened, pieces, turns_of

T = TypeVar("T")
TEXTS = ("text", "prompt", "completion", "answer")
SPOKEN = {"messages": "messages", "conversations": "messages", "conversation": "messages"}
"""Names of fields that hold a conversation."""


def make_rows(record: Any, options: RowsOptions, place: Callable[[], str]) -> list[rqat.Row]:
    """Picks a row's fields out of a record; of a conversation with `turns: all` there are several rows.

    Args:
        record: one line of a file or one example of a data set.
        place: says where the record is, for the row's `place` and for errors.
    """
    if not isinstance(record, Mapping):
        raise rqat.DataError(f"{place()}: not an object.", hint='Write one object per line: {"text": "..."}.')
    names = dict(options.fields) or _known(record)
    row: dict[str, Any] = {"place": place()}
    for field, name in names.items():
        value = inside(record, name)
        if field == "messages" or (field in ("prompt", "completion") and isinstance(value, list)):
            row[field] = turns_of(value, name, place, asks=field != "completion")
        elif field != "system" or value:  # no system prompt is none
            row[field] = _text(record, field, name, place)
    if isinstance(row.get("prompt"), list):  # as TRL has them
        row["messages"] = [*row.pop("prompt"), *_answered(row, place)]
    if "input" in row:
        given = row.pop("input").strip()
        row["prompt"] = f"{row['prompt']}\n\n{given}" if given else row["prompt"]
    if "messages" in row:
        turns = opened(row.pop("messages"), row.pop("system", None))
        return [cast(rqat.Row, row | {"messages": piece}) for piece in pieces(turns, options.turns)]
    if not ("text" in row or "prompt" in row):
        raise rqat.DataError(
            f"{place()}: neither 'text' nor 'prompt'.",
            hint=f"Fields here: {', '.join(map(str, record)) or 'none'}. Map them: fields: {{prompt: NAME, ...}}",
        )
    return [cast(rqat.Row, row)]


def records_of(examples: Iterable[Any], what: str) -> Iterator[tuple[int, Any]]:
    """Every example of a data set with its number from 0; a table may hold what is no text, found as it is read.

    Raises:
        DataError: names the row.
    """
    found, number = iter(examples), 0
    while True:
        try:
            record = next(found)
        except StopIteration:
            return
        except (ValueError, OSError) as error:  # pyarrow's own are of these
            reason = " ".join(str(error).split())[:200]
            raise rqat.DataError(
                f"{what}, row {number + 1}: cannot be read: {reason}.", hint="Mend the data."
            ) from error
        yield number, record
        number += 1


def _known(record: Mapping[str, Any]) -> dict[str, str]:
    """Which field of a record is which of a row's, by the names that are common."""
    names = {field: field for field in (*TEXTS, "system") if field in record}
    if "text" in names or "completion" in names or ("prompt" in names and "answer" in names):
        return names
    spoken = next((name for name in SPOKEN if isinstance(record.get(name), list)), None)
    if spoken is not None:
        return {field: name for field, name in names.items() if field != "prompt"} | {"messages": spoken}
    if "prompt" not in names and {"instruction", "output"} <= record.keys():  # Alpaca's
        inner = {"input": "input"} if record.get("input") else {}
        return names | {"prompt": "instruction", "completion": "output"} | inner
    return names


def _answered(row: dict[str, Any], place: Callable[[], str]) -> list[rqat.Message]:
    """The turns of a completion that stands beside a prompt made of messages."""
    completion = row.pop("completion", [])
    return [rqat.Message(role="assistant", content=completion)] if isinstance(completion, str) else completion


def _text(record: Mapping[str, Any], field: str, name: str, place: Callable[[], str]) -> str:
    value = inside(record, name)
    if isinstance(value, int | float) and not isinstance(value, bool) and field == "answer" and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str):
        there = "is null" if holds(record, name) else "is missing"
        what = there if value is None else f"is not a text but {_kind(value)}"
        raise rqat.DataError(
            f"{place()}: the field '{name}' {what}.",
            hint=f"Fields here: {', '.join(map(str, record)) or 'none'}. Name others with `fields`.",
        )
    rqat.refuse_half_pairs(value, place, f" of the field '{name}'")
    return value


def _kind(value: Any) -> str:
    """What a value is called; of a number that is none, how it is written."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else type(value).__name__


def inside(record: Mapping[str, Any], name: str) -> Any:
    """The value called `name`, or the one that `generations.0` and the like lead to; None when there is none."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and len(part) < 10 and int(part) < len(value):
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
    """What decides the split of a row: its text, prompt or first question; one problem is never in two splits."""
    if "messages" in row:
        return first_question(row["messages"])
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
        held_out = "Hold rows out with a share, `validation: 0.1` beside the path, or name the split 'train'."
        raise rqat.DataError(
            f"{what} is empty.", hint=held_out if "'validation'" in what else "Check the path and the split."
        )
    return rows


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
