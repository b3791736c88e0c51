"""GSM8K (arXiv 2110.14168) as training data: grade-school problems with worked solutions, ending in a boxed answer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rqat

from . import Gsm8kOptions
from .files import records
from .hub import load_split
from .rows import in_split, not_empty, shuffled

NAME = "openai/gsm8k"
_CALCULATOR = re.compile(r"<<[^<>]*>>")


class Gsm8k(rqat.Source):
    """The train split, of which a share is set aside as validation; the test split is for evaluation only."""

    options: Gsm8kOptions

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        if split == "test":
            raise rqat.DataError(
                "The test split of GSM8K is for evaluation, not for calibration or training.",
                hint="Use split 'train' or 'validation' here, and `evaluate: [{task: gsm8k}]`.",
            )
        where, found = self._records()
        rows = [self._row(record, f"{where}:{line}") for line, record in found]
        chosen = in_split(not_empty(rows, where), split, self.options.validation, where)
        return shuffled(not_empty(chosen, f"The split '{split}' of {where}"), seed, shuffle=self.options.shuffle)

    def _records(self) -> tuple[str, Iterator[tuple[int, Any]]]:
        path = self._path()
        if path is None:
            examples = load_split(
                NAME, "main", None, "train", hint="Give the folder of the files as `path`, or set RQAT_DATA."
            )
            return NAME, ((index, example) for index, example in enumerate(examples))
        return str(path), records(path)

    def _path(self) -> Path | None:
        """The file to read; None for the hub."""
        if self.options.path is not None:
            path = self.options.path.path
            found = _train_file(path) if path.is_dir() else path
            if found is None:
                raise rqat.DataError(f"'{path}' holds no train.jsonl or train.jsonl.gz.", hint="Check `path`.")
            if found.name.startswith("test"):
                raise rqat.DataError(
                    f"'{found}' looks like the test split of GSM8K, which is for evaluation only.",
                    hint="Give train.jsonl or its folder.",
                )
            return found
        root = os.environ.get("RQAT_DATA")
        return _train_file(Path(root) / "gsm8k") if root else None

    def _row(self, record: Any, place: str) -> rqat.Row:
        try:
            question, solution = record["question"], record["answer"]
            steps, mark, answer = solution.rpartition("####")
        except (TypeError, KeyError, AttributeError) as error:
            raise rqat.DataError(
                f"{place}: not a problem of GSM8K.", hint="Its fields are 'question' and 'answer', both texts."
            ) from error
        if not mark or not answer.strip():
            raise rqat.DataError(f"{place}: the answer has no '#### <number>' at its end.")
        answer = answer.strip().replace(",", "")
        steps = _CALCULATOR.sub("", steps).strip()
        prompt = f"{question.strip()}\n\n{self.options.instruction}" if self.options.instruction else question.strip()
        return {
            "prompt": prompt,
            "completion": f"{steps}\n\\boxed{{{answer}}}",
            "answer": answer,
            "place": place,
        }


def _train_file(folder: Path) -> Path | None:
    return next((path for name in ("train.jsonl", "train.jsonl.gz") if (path := folder / name).is_file()), None)
