"""MATH-500, GSM8K and AIME: where their problems are, and how completions are graded."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import rqat
from rqat.evals.grade import Form, grade

from . import MathOptions

MEND = "Mend the data."


class MathTask(rqat.Task):
    """A file of problems with an instruction after each.

    Class attributes:
        file: where the problems lie under `$RQAT_DATA`.
        hub: name and configuration of the data set on the hub; None where only the user has the problems.
        question: field of the problem, in lower case.
        forms: where an answer may stand in a completion.
    """

    options: MathOptions
    file: ClassVar[str]
    hub: ClassVar[tuple[str, str | None] | None]
    question: ClassVar[str]
    forms: ClassVar[tuple[Form, ...]] = ("boxed",)

    def problems(self) -> Sequence[rqat.Row]:
        """See `rqat.Task`."""
        rows = [self._row(place, record) for place, record in self._records()]
        if not rows:
            raise rqat.DataError(f"'{self.options.data or self.file}' holds no problems.", hint="Check `data`.")
        return rows

    def grade(self, completion: str, answer: str, row: rqat.Row) -> rqat.Verdict:
        """See `rqat.Task`."""
        return grade(completion, answer, timeout_s=self.options.timeout_s, forms=self.forms)

    def answer_of(self, record: dict[str, Any]) -> str:
        """The right answer of a problem: a text or a number."""
        answer = record["answer"]
        number = isinstance(answer, (int, float)) and not isinstance(answer, bool) and math.isfinite(answer)
        if not (number or isinstance(answer, str)):
            raise TypeError
        return str(answer)

    def _row(self, place: str, record: Any) -> rqat.Row:
        try:
            question, answer = record[self.question].strip(), self.answer_of(record)
        except (TypeError, KeyError, AttributeError) as error:
            raise rqat.DataError(
                f"{place}: a problem needs the fields '{self.question}' and 'answer', a text and a text or a number.",
                hint="Check `data`.",
            ) from error
        if not (question and answer.strip()):
            raise rqat.DataError(f"{place}: {'the answer' if question else 'the problem'} is empty.", hint=MEND)
        for field, text in ((self.question, question), ("answer", answer)):
            rqat.refuse_half_pairs(text, lambda: place, f" of the field '{field}'")
        if self.options.instruction:
            question = f"{question}\n\n{self.options.instruction}"
        return {"prompt": question, "answer": answer, "place": place}

    def _records(self) -> Iterator[tuple[str, Any]]:
        path = self.options.data.path if self.options.data else self._beside()
        if path is None:
            yield from self._from_hub()
            return
        yield from json_lines(path / Path(self.file).name if path.is_dir() else path)

    def _beside(self) -> Path | None:
        root = os.environ.get("RQAT_DATA")
        path = Path(root) / self.file if root else None
        return path if path is not None and path.is_file() else None

    def _from_hub(self) -> Iterator[tuple[str, Any]]:
        import datasets

        if self.hub is None:
            raise rqat.DataError(
                f"'{type(self).__name__.lower()}' has no problems: rqat brings none, and its texts are not free.",
                hint=f"Give your own file with --data, or put {self.file} under the folder that RQAT_DATA names.",
            )
        name, config = self.hub
        try:
            found = datasets.load_dataset(name, config, split="test")
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())[:200]
            raise rqat.DataError(
                f"The data set '{name}' (split 'test') cannot be loaded: {reason}",
                hint=f"Give its file with --data, or put {self.file} under the folder that RQAT_DATA names.",
            ) from error
        for index, record in enumerate(found):
            yield f"{name}[{index}]", record


class Math500(MathTask):
    """The 500 problems of "Let's verify step by step" (arXiv 2305.20050)."""

    file = "math500/test.jsonl"
    hub = ("HuggingFaceH4/MATH-500", None)
    question = "problem"


class Gsm8k(MathTask):
    """The test split of GSM8K; `#### 18` counts as an answer too."""

    file = "gsm8k/test.jsonl"
    hub = ("openai/gsm8k", "main")
    question = "question"
    forms = ("boxed", "hashes")

    def answer_of(self, record: dict[str, Any]) -> str:
        """What stands after `####`."""
        _, mark, answer = record["answer"].rpartition("####")
        if not mark:
            raise KeyError("####")
        return answer.strip().replace(",", "")


class Aime120(MathTask):
    """The 120 problems of AIME I and II of 2022 to 2025, whose answers are integers from 0 to 999.

    The texts are the user's: a file with `problem` and `answer`, in capitals or not, as several sets on the hub have.
    """

    file = "aime120/test.jsonl"
    hub = None
    question = "problem"

    def _row(self, place: str, record: Any) -> rqat.Row:
        lower = {key.lower(): value for key, value in record.items()} if isinstance(record, dict) else record
        return super()._row(place, lower)


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """What the lines of a file hold, each behind its place; empty lines hold nothing.

    Raises:
        DataError: it cannot be read, or a line is no JSON.
    """
    for line, each in enumerate(rqat.read_text(path).split("\n"), start=1):
        if each.strip():
            try:
                yield f"{path}:{line}", rqat.parse_json(each)
            except (ValueError, RecursionError) as error:
                raise rqat.DataError(f"{path}:{line}: not JSON: {error}.", hint="Write one object per line.") from error
