"""A stranger's source `acme-table`: problems of a CSV or Parquet file, with choices put below the question."""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

import rqat

LETTERS = "ABCDEFGHIJ"


class Options(rqat.Options):
    """Options of `acme-table`.

    Attributes:
        path: a `.csv` or `.parquet` file.
        question: column of the question.
        choices: columns of the choices, put below the question as A), B), ...
        completion: column of a worked solution; None when there is none.
        answer: column of the answer; None when there is none.
        validation: share of the rows set aside for the split `validation`, by a hash of the question.
    """

    path: rqat.File
    question: str = "question"
    choices: tuple[str, ...] = Field(default=(), max_length=len(LETTERS))
    completion: str | None = "solution"
    answer: str | None = "answer"
    validation: float = Field(default=0.05, ge=0, lt=1)


class Table(rqat.Source):
    options: Options

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        o = self.options
        if split == "test":
            raise rqat.DataError(f"'{o.path}' has no split 'test'.", hint="Use train or validation.")
        found = [self._row(record, line) for line, record in enumerate(self._records(), 2)]
        kept = [row for row in found if (_share(row["prompt"]) < o.validation) == (split == "validation")]
        if not kept:
            raise rqat.DataError(f"'{o.path}' has no rows in its split '{split}'.", hint="Check `validation`.")
        random.Random(seed).shuffle(kept)
        yield from kept

    def _records(self) -> list[Mapping[str, Any]]:
        path = self.options.path.path
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_table(path).to_pylist())
        with path.open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))

    def _row(self, record: Mapping[str, Any], line: int) -> rqat.Row:
        o = self.options
        missing = [column for column in (o.question, *o.choices) if record.get(column) in (None, "")]
        if missing:
            columns = ", ".join(record)
            raise rqat.DataError(f"{o.path}:{line}: no {', '.join(missing)}.", hint=f"Columns: {columns}.")
        choices = [f"{letter}) {record[column]}" for letter, column in zip(LETTERS, o.choices, strict=False)]
        row = rqat.Row(prompt="\n".join([str(record[o.question]), *choices]))
        if o.completion and record.get(o.completion):
            row["completion"] = str(record[o.completion])
        if o.answer and record.get(o.answer) not in (None, ""):
            row["answer"] = str(record[o.answer])
        return row


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


@rqat.hookimpl
def register_sources(register: rqat.RegisterSource) -> None:
    register("acme-table", options=Options, load=":Table", summary="problems of a CSV or Parquet file")
