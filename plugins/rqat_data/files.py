"""Sources that read one file: `jsonl` and `text`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rqat

from . import JsonlOptions, TextOptions
from .rows import in_split, make_rows, not_empty, shuffled

TABLES = (".csv", ".tsv", ".parquet", ".xlsx", ".xls")
"""Endings of files that are no JSON."""


class Jsonl(rqat.Source):
    """Rows of a JSON-lines file."""

    options: JsonlOptions

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        path = self.options.path.path
        if path.suffix.lower() in TABLES:
            raise rqat.DataError(
                f"'{path}' is a {path.suffix} file, which has no JSON.",
                hint=f"Name it as the source, `data: {path}`, or use `source: table`.",
            )
        found = [
            row
            for line, record in records(path)
            for row in make_rows(record, self.options, lambda line=line: f"{path}:{line}")  # type: ignore[misc]
        ]
        chosen = in_split(not_empty(found, f"'{path}'"), split, self.options.validation, f"'{path}'")
        return shuffled(not_empty(chosen, f"The split '{split}' of '{path}'"), seed, shuffle=self.options.shuffle)


class Text(rqat.Source):
    """Documents of a plain text file."""

    options: TextOptions

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        path = self.options.path.path
        text = rqat.read_text(path)
        separators = {"paragraph": r"\n[ \t]*(?:\n[ \t]*)+", "line": r"\n", "file": r"\Z"}
        found: list[rqat.Row] = []
        line = 1
        for piece in re.split(f"({separators[self.options.split_at]})", text):
            if len(piece.strip()) >= self.options.min_chars:
                first = line + piece[: len(piece) - len(piece.lstrip())].count("\n")
                found.append({"text": piece.strip(), "place": f"{path}:{first}"})
            line += piece.count("\n")
        chosen = in_split(not_empty(found, f"'{path}'"), split, self.options.validation, f"'{path}'")
        return shuffled(not_empty(chosen, f"The split '{split}' of '{path}'"), seed, shuffle=self.options.shuffle)


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of every line that is not blank; or of every element, where the file is one JSON list."""
    text = rqat.read_text(path)
    if text.lstrip()[:1] == "[" and _is_list(text):
        yield from _elements(text, path)
        return
    for line, written in enumerate(text.split("\n"), start=1):
        if not written.strip():
            continue
        try:
            yield line, rqat.parse_json(written)
        except (ValueError, RecursionError) as error:
            raise _not_json(path, line, error) from error


def _is_list(text: str) -> bool:
    """Whether a file that begins with a bracket is one list, and not lines of which the first is one."""
    try:
        json.loads(text.strip().split("\n", 1)[0])
    except (ValueError, RecursionError):
        return True
    return "\n" not in text.strip()


def _elements(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list, each with the line it begins on."""
    decoder, blank = json.JSONDecoder(), re.compile(r"\s*")
    line, counted = 1, 0
    at = blank.match(text, text.index("[") + 1).end()  # type: ignore[union-attr]
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            end = decoder.raw_decode(text, at)[1]
            value, at = rqat.parse_json(text[at:end]), end
        except (ValueError, RecursionError) as error:
            raise _not_json(path, getattr(error, "lineno", line), error) from error
        yield line, value
        at = blank.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] not in (",", "]"):
            raise rqat.DataError(
                f"{path}:{line + text.count(chr(10), counted, at)}: not JSON: a comma or the list's end is missing.",
                hint="Write a JSON list of objects, or one object per line.",
            )
        at = blank.match(text, at + (text[at] == ",")).end()  # type: ignore[union-attr]
    if text[at + 1 :].strip():
        raise rqat.DataError(
            f"{path}:{line + text.count(chr(10), counted, at)}: the list ends here, and more follows.",
            hint="Write one JSON list, or one object per line.",
        )


def _not_json(path: Path, line: int, error: Exception) -> rqat.DataError:
    what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return rqat.DataError(f"{path}:{line}: not JSON: {what}.", hint="Write one JSON object per line.")
