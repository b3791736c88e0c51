"""A stranger's source `acme-traces`: solutions that the model before quantization writes itself, those that are right.

Self-generated data keeps a quantized model closer to itself than data of others does. The model is asked once, in a
step of its own; calibration and training read what it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

import rqat
from rqat.evals.grade import boxed

FILE = "traces.jsonl"


class Options(rqat.Options):
    """Options of `acme-traces`.

    Attributes:
        prompts: the source of the problems.
        rows: how many of them are asked.
        max_new_tokens: longest trace.
        temperature: of sampling; 0 is greedy.
        batch: problems asked together, and lost when the run is interrupted.
    """

    prompts: list[rqat.Part] = Field(min_length=1, max_length=1)
    rows: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=192, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    batch: int = Field(default=8, ge=1)


class Traces(rqat.Source):
    options: Options

    def combine(self, parts: Sequence[rqat.Source]) -> None:
        [self.prompts] = parts

    def produce(self, folder: Path, loaded: rqat.LoadedModel, split: rqat.Split, seed: int) -> Mapping[str, Any]:
        """One line for every problem, a batch at a time; whole batches of an earlier attempt are kept."""
        o, path = self.options, folder / FILE
        asked = list(islice(self.prompts.rows(split, seed), o.rows))
        there = whole_lines(path)
        there = there[: len(there) // o.batch * o.batch]
        path.write_text("".join(map(line, there)), encoding="utf-8")
        for start in range(len(there), len(asked), o.batch):
            rows = asked[start : start + o.batch]
            written = loaded.complete(
                rows, max_new_tokens=o.max_new_tokens, temperature=o.temperature, seed=seed + start, batch=o.batch
            )
            with path.open("a", encoding="utf-8") as file:
                file.writelines(line(trace(row, one)) for row, [one] in zip(rows, written, strict=True))
        lines = whole_lines(path)
        return {"asked": len(lines), "kept": sum(each["kept"] for each in lines), "found_there": len(there)}

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        assert self.folder is not None
        for each in whole_lines(self.folder / FILE):
            if each.pop("kept"):
                yield each  # type: ignore[misc]


def trace(row: rqat.Row, written: rqat.Completion) -> dict[str, Any]:
    right = boxed(written.text) == row.get("answer")
    return {**row, "completion": written.text, "kept": written.ended and right}


def line(value: Mapping[str, Any]) -> str:
    return json.dumps(value) + "\n"


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file up to the first that was cut off; none when there is no file."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found


@rqat.hookimpl
def register_sources(register: rqat.RegisterSource) -> None:
    register("acme-traces", options=Options, load=":Traces", model=True, summary="traces that the model itself writes")
