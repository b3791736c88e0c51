"""A stranger's table of problems: rows, mistakes, and that what it holds decides, not where it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pyarrow.parquet
import pytest

import rqat.testing
from rqat import DataError
from rqat.plan import Plan, build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry

CSV = """\
question,a,b,solution,answer
What is 2 + 3?,4,5,"2 + 3 = 5, so \\boxed{B}",B
What is 4 + 4?,8,9,4 + 4 = 8. \\boxed{A},A
"""


@pytest.fixture
def registry(given: Callable[..., Registry]) -> Registry:
    return given("acme_table")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "problems.csv").write_text(CSV)
    return tmp_path / "problems.csv"


def source(registry: Registry, path: Path, **options: Any) -> rqat.Source:
    card = registry.card("source", "acme-table")
    made: rqat.Source = registry.make(card, registry.options(card, {"path": str(path), "validation": 0, **options}))
    return made


def test_choices_stand_below_the_question(registry: Registry, table: Path) -> None:
    rows = sorted(source(registry, table, choices=["a", "b"]).rows("train", 0), key=lambda row: row["answer"])
    assert rows[1] == {
        "prompt": "What is 2 + 3?\nA) 4\nB) 5",
        "completion": "2 + 3 = 5, so \\boxed{B}",
        "answer": "B",
    }
    assert [row["answer"] for row in rows] == ["A", "B"]


def test_a_parquet_file_gives_the_same_rows(registry: Registry, table: Path) -> None:
    records = {"question": ["What is 2 + 3?", "What is 4 + 4?"], "a": [4, 8], "b": [5, 9], "answer": ["B", "A"]}
    records["solution"] = ["2 + 3 = 5, so \\boxed{B}", "4 + 4 = 8. \\boxed{A}"]
    parquet = table.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.table(records), parquet)
    both = [list(source(registry, path, choices=["a", "b"]).rows("train", 3)) for path in (table, parquet)]
    assert both[0] == both[1]


def test_an_empty_cell_is_told_with_its_line(registry: Registry, table: Path) -> None:
    table.write_text(CSV + "What is 1 + 1?,2,,2,A\n")
    with pytest.raises(DataError, match=r"problems\.csv:4: no b\."):
        list(source(registry, table, choices=["a", "b"]).rows("train", 0))


def plan_of(registry: Registry, path: Path) -> Plan:
    calibration = {"source": "acme-table", "path": str(path), "samples": 1, "tokens": 16}
    recipe = {"name": "table", "model": "builtin:tiny-reasoner", "calibration": calibration, "quantize": "gptq"}
    return build_plan(built_recipe(recipe, {}), registry)


def test_the_contents_of_the_file_decide_and_its_name_does_not(registry: Registry, table: Path) -> None:
    def prints(path: Path) -> list[str]:
        plan = plan_of(registry, path)
        return [plan.fingerprint(step) for step in plan.steps]

    before = prints(table)
    renamed = table.rename(table.with_name("renamed.csv"))
    assert prints(renamed) == before
    renamed.write_text(CSV.replace("4 + 4?", "4 + 4 ?"))
    assert not set(prints(renamed)) & set(before)


def test_a_missing_file_is_told_by_plan(registry: Registry, tmp_path: Path) -> None:
    plan = plan_of(registry, tmp_path / "gone.csv")
    errors = [finding.text for finding in preflight(plan, offline=True) if finding.level == "error"]
    assert errors == [f"calibration: acme-table.path: there is no file '{tmp_path / 'gone.csv'}'."]


def test_conformance(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    lines = [f"What is {n} + 1?,{n} + 1 = {n + 1},{n + 1}" for n in range(60)]
    path.write_text("\n".join(["question,solution,answer", *lines]))

    class Suite(rqat.testing.SourceSuite):
        name = "acme-table"
        options: ClassVar = {"path": str(path), "validation": 0.2}

    Suite.registry = registry
    suite = Suite()
    for test in (name for name in dir(suite) if name.startswith("test_")):
        getattr(suite, test)()
