"""A source `own-rows` that has the model write its rows, whatever they are: so that a run of the campaign produces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

import rqat

FILE, ROWS, BATCH = "rows.jsonl", 6, 2


class Options(rqat.Options):
    """Options of `own-rows`: `prompts`, the source of the problems."""

    prompts: list[rqat.Part] = Field(min_length=1, max_length=1)


class OwnRows(rqat.Source):
    options: Options

    def combine(self, parts: Any) -> None:
        [self.prompts] = parts

    def produce(self, folder: Path, loaded: rqat.LoadedModel, split: rqat.Split, seed: int) -> Mapping[str, Any]:
        """A file for every batch, under its name when it is whole."""
        asked = list(islice(self.prompts.rows(split, seed), ROWS))
        for start in range(0, ROWS, BATCH):
            path, rows = folder / f"{start}-{FILE}", asked[start : start + BATCH]
            if path.exists():
                continue
            written = loaded.complete(rows, max_new_tokens=8, temperature=1.0, seed=seed + start, batch=BATCH)
            lines = [{**row, "completion": one.text or "-"} for row, [one] in zip(rows, written, strict=True)]
            temporary = folder / f".{path.name}.tmp"
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            temporary.replace(path)
        return {"rows": ROWS}

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        assert self.folder is not None
        for path in sorted(self.folder.glob(f"*-{FILE}")):
            yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


@rqat.hookimpl
def register_sources(register: rqat.RegisterSource) -> None:
    register("own-rows", options=Options, load=":OwnRows", model=True, summary="rows that the model writes")
