"""Sources that read one file: `jsonl` and `text`."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rqat

from . import JsonlOptions, TextOptions
from .rows import in_split, make_row, not_empty, shuffled


class Jsonl(rqat.Source):
    """Rows of a JSON-lines file."""

    options: JsonlOptions

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        path = self.options.path.path
        found = [
            make_row(record, self.options.fields, lambda line=line: f"{path}:{line}")  # type: ignore[misc]
            for line, record in records(path)
        ]
        chosen = in_split(not_empty(found, f"'{path}'"), split, self.options.validation, f"'{path}'")
        return shuffled(not_empty(chosen, f"The split '{split}' of '{path}'"), seed, shuffle=self.options.shuffle)


class Text(rqat.Source):
    """Documents of a plain text file."""

    options: TextOptions

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        path = self.options.path.path
        text = read_text(path)
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


def read_text(path: Path) -> str:
    """A file's text, unpacked if it is named `.gz`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
        raise rqat.DataError(f"'{path}' cannot be read: {reason}.", hint="Check `path`.") from error
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise rqat.DataError(f"'{path}' is not a whole gzip file: {error}.", hint="Fetch it again.") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise rqat.DataError(f"{path}:{line}: not UTF-8.", hint="Convert the file to UTF-8.") from error


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of every line that is not blank."""
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            yield line, json.loads(text)
        except (ValueError, RecursionError) as error:
            raise rqat.DataError(
                f"{path}:{line}: not JSON: {error}.", hint="Write one JSON object per line."
            ) from error
