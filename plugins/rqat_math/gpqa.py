"""GPQA-Diamond: multiple choice by experts, from the user's own copy."""

from __future__ import annotations

import csv
import io
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import rqat
from rqat.evals.grade import grade

from . import GpqaOptions
from .tasks import MEND, json_lines

FILE = "gpqa/diamond.csv"
RIGHT = "Correct Answer"
WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = "ABCD"


class Gpqa(rqat.Task):
    """The 198 questions of "GPQA" (arXiv 2311.12022) that experts agree on.

    Choices are shuffled by `shuffle` and the question's place, since the file lists the right one first.
    """

    options: GpqaOptions

    def problems(self) -> Sequence[rqat.Row]:
        """See `rqat.Task`."""
        rows = [self._row(index, place, record) for index, (place, record) in enumerate(self._records())]
        if not rows:
            raise rqat.DataError(f"'{self.options.data or FILE}' holds no questions.", hint="Check `data`.")
        return rows

    def grade(self, completion: str, answer: str, row: rqat.Row) -> rqat.Verdict:
        """See `rqat.Task`."""
        return grade(completion, f"({answer})", timeout_s=self.options.timeout_s, forms=("boxed", "answer"))

    def _row(self, index: int, place: str, record: Any) -> rqat.Row:
        try:
            question, right = record["Question"].strip(), record[RIGHT].strip()
            choices = [right, *(record[name].strip() for name in WRONG)]
        except (TypeError, KeyError, AttributeError) as error:
            fields = ", ".join(f"'{name}'" for name in ("Question", RIGHT, *WRONG))
            raise rqat.DataError(f"{place}: a question needs the fields {fields}.", hint="Check `data`.") from error
        if not all((question, *choices)):
            raise rqat.DataError(f"{place}: the question or a choice is empty.", hint=MEND)
        random.Random(f"{self.options.shuffle}/{index}").shuffle(choices)
        listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
        prompt = f"{question}\n\n{listed}"
        if self.options.instruction:
            prompt = f"{prompt}\n\n{self.options.instruction}"
        return {"prompt": prompt, "answer": LETTERS[choices.index(right)], "place": place}

    def _records(self) -> Iterator[tuple[str, Any]]:
        root = os.environ.get("RQAT_DATA")
        path = self.options.data.path if self.options.data else Path(root) / FILE if root else None
        if path is None or not path.exists():
            raise rqat.DataError(
                f"'{path or FILE}' is not there: rqat brings no questions, since their authors ask not to show them.",
                hint=f"Give your own gpqa_diamond.csv with --data, or as {FILE} under the folder that RQAT_DATA names.",
            )
        if path.name.removesuffix(".gz").endswith(".csv"):
            for number, record in enumerate(csv.DictReader(io.StringIO(rqat.read_text(path))), start=1):
                yield f"{path}: row {number}", record
            return
        yield from json_lines(path)
