"""A plan that is looked at reads every source once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rqat.contracts import Row, Source, Split
from rqat.errors import DataError
from rqat.plan import build_plan
from rqat.preflight import read_data
from rqat.read_once import ReadOnce
from rqat.recipe import load_recipe
from rqat.registry import Registry


class Three(Source):
    """Three rows for every seed, and where `breaks` is set an error behind them."""

    def __init__(self, *, breaks: bool = False) -> None:
        super().__init__(None)
        self.breaks, self.read = breaks, list[str]()

    def rows(self, split: Split, seed: int) -> Iterator[Row]:
        """See `Source`."""
        for number in range(3):
            self.read.append(f"{split} {seed} {number}")
            yield {"text": f"{split} {seed} {number}"}
        if self.breaks:
            raise DataError("the disk is gone.")


def test_rows_are_read_once_and_given_anew() -> None:
    source = Three()
    once = ReadOnce(source)
    first = once.rows("train", 0)
    taken = next(first)
    taken["text"] = "changed"
    assert source.read == ["train 0 0"], "no more is read than is asked for"
    assert [row["text"] for row in once.rows("train", 0)] == ["train 0 0", "train 0 1", "train 0 2"]
    assert [row["text"] for row in first] == ["train 0 1", "train 0 2"]
    assert len(source.read) == 3
    assert [row["text"] for row in once.rows("train", 1)] == ["train 1 0", "train 1 1", "train 1 2"]
    assert once.breaks is False, "in all else it is the source"


def test_what_stands_in_the_way_is_told_to_everybody() -> None:
    once = ReadOnce(Three(breaks=True))
    for _ in range(2):
        with pytest.raises(DataError, match="the disk is gone"):
            list(once.rows("train", 0))


def test_a_file_that_three_steps_name_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}+1=", "completion": f"{n + 1}"}) + "\n" for n in range(40)))
    part = {"data": str(rows), "steps": 2, "batch": 2, "max_tokens": 64}
    recipe: dict[str, Any] = {
        "name": "r",
        "model": "builtin:tiny-reasoner",
        "scheme": "w4g128",
        "calibration": {"source": str(rows), "samples": 4, "tokens": 32},
        "quantize": "gptq",
        "train": [{"objective": "sft", **part}, {"objective": "kd", **part}],
        "export": None,
        "evaluate": [{"task": "arith", "limit": 2}],
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    registry = Registry.discover()
    from rqat_data import files

    parsed: list[Path] = []
    records = files.records
    monkeypatch.setattr(files, "records", lambda path: parsed.append(path) or records(path))
    found = read_data(build_plan(load_recipe(str(tmp_path / "r.yaml")), registry), registry)
    assert not [one for one in found if one.level == "error"], found
    assert parsed == [rows]
