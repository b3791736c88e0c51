"""Rows of a table: a CSV, TSV or Parquet file, read by Hugging Face `datasets`."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rqat

from . import TableOptions
from .rows import in_split, make_rows, not_empty, records_of, shuffled

SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Table(rqat.Source):
    """Rows of a table; its columns are the fields."""

    options: TableOptions

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        path = self.options.path.path
        found = [
            row
            for number, record in records_of(read_table(path), str(path))
            for row in make_rows(record, self.options, lambda number=number: f"{path}, row {number + 1}")  # type: ignore[misc]
        ]
        chosen = in_split(not_empty(found, f"'{path}'"), split, self.options.validation, f"'{path}'")
        return shuffled(not_empty(chosen, f"The split '{split}' of '{path}'"), seed, shuffle=self.options.shuffle)


def read_table(path: Path) -> Any:
    """The data set in a file, in memory; a cell of a text file is text as it stands there, `007` and `N/A` too.

    Raises:
        DataError: there is no such file, or it is no table of its ending.
    """
    import datasets

    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    settings: dict[str, Any] = {"keep_in_memory": True}
    if ending in SEPARATORS:
        columns = _columns(path, SEPARATORS[ending])
        text = datasets.Features({name: datasets.Value("string") for name in columns})
        settings |= {"sep": SEPARATORS[ending], "features": text, "keep_default_na": False, "encoding": "utf-8-sig"}
    elif ending != ".parquet":
        raise rqat.DataError(f"'{path}' is no table.", hint="Tables end in .csv, .tsv (both also .gz) or .parquet.")
    elif not path.is_file():
        raise rqat.DataError(f"'{path}' cannot be read: there is no such file.", hint="Check `path`.")
    else:
        rqat.refuse_pointer(path)
    with TemporaryDirectory() as folder, _quiet():
        try:
            read = datasets.Dataset.from_csv if ending in SEPARATORS else datasets.Dataset.from_parquet
            return read(str(path), cache_dir=folder, **settings)
        except (OSError, ValueError, TypeError, datasets.exceptions.DatasetsError) as error:
            if "corresponds to no data" in str(error):  # a head without rows
                return []
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise rqat.DataError(f"'{path}' is no {ending} table: {reason}", hint="Check the file.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars, and no log lines: what is wrong is told by the error."""
    import datasets

    log, shown = logging.getLogger("datasets"), not datasets.are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def _columns(path: Path, separator: str) -> list[str]:
    """Names of the columns, from a text file's first line.

    Raises:
        DataError: there are none, or two have the same.
    """
    names = next(csv.reader(io.StringIO(rqat.read_text(path)), delimiter=separator), [])
    if not any(names):
        raise rqat.DataError(f"'{path}' is empty.", hint="Its first line names the columns.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise rqat.DataError(f"{path}:1: two columns are called '{twice}'.", hint="Rename one.")
    return names
