"""An edited plugin counts: every file that its part may be made of changes the fingerprint of the steps that use it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

import rqat
import rqat_seq
from rqat.cards import Card
from rqat.discovery import PATHS
from rqat.facts import difference, files_of, part_facts
from rqat.plan import Plan, build_plan
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.stage import Use
from tests.plugin_maker import QUANTIZER
from tests.tiny import save_tiny

PLUGIN = QUANTIZER.format(name="acme", load=":Acme")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder to write plugins into; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    monkeypatch.delenv(PATHS, raising=False)
    Registry.discover()


def edited(place: Path, model: Path, plugin: Path, file: Path, monkeypatch: pytest.MonkeyPatch, **keys: str):
    """Plans before and after `file` is edited, the plugin as it was loaded."""
    monkeypatch.setenv(PATHS, str(plugin))
    registry = Registry.discover()
    assert not registry.broken
    plan = build_plan(
        built_recipe({"name": "x", "model": str(model), "scheme": "w2g64", "quantize": "rtn", **keys}, {}, []), registry
    )
    before = {step.name: plan.facts(step) for step in plan.steps}
    file.write_text(file.read_text() + "\n# edited\n")
    return plan, before


def reached(plan: Plan, before: dict) -> list[str]:
    return [step.name for step in plan.steps if plan.facts(step) != before[step.name]]


@pytest.mark.parametrize("file", ["acme.py", "beside.py", "deeper/__init__.py", "deeper/table.json"])
def test_a_plugin_file_and_the_modules_beside_it_that_it_imports(
    place: Path, model: Path, file: str, monkeypatch: pytest.MonkeyPatch
):
    (place / "deeper").mkdir()
    (place / "acme.py").write_text(f"import json\nimport beside\n{PLUGIN}")
    (place / "beside.py").write_text("from deeper import something\n")
    (place / "deeper" / "__init__.py").write_text("something = 1\n")
    (place / "deeper" / "table.json").write_text("[1]")
    plan, before = edited(place, model, place / "acme.py", place / file, monkeypatch, quantize="acme")
    assert reached(plan, before) == ["01-quantize-acme", "02-export"]
    [line] = difference(before["01-quantize-acme"], plan.facts(plan.steps[0]))
    assert line == "the source of acme was edited"


def test_what_a_plugin_does_not_import_counts_for_nothing(place: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    (place / "acme.py").write_text(PLUGIN)
    (place / "other.py").write_text("1\n")
    plan, before = edited(place, model, place / "acme.py", place / "other.py", monkeypatch, quantize="acme")
    assert reached(plan, before) == []


@pytest.mark.parametrize(("file", "counts"), [("solver.py", True), ("problems.jsonl", True), (".cache/notes", False)])
def test_every_file_of_a_package(place: Path, model: Path, file: str, counts: bool, monkeypatch: pytest.MonkeyPatch):
    package = place / "acme"
    (package / ".cache").mkdir(parents=True)
    (package / "__init__.py").write_text(PLUGIN)
    (package / file).write_text("1\n")
    plan, before = edited(place, model, package, package / file, monkeypatch, quantize="acme")
    assert bool(reached(plan, before)) == counts


def test_a_grid(place: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    """The scheme names it and no part does, so that its code once counted for nothing."""
    plugin = Path(shutil.copy(str(rqat_seq.__file__), place / "acme_grid.py"))
    plugin.write_text(plugin.read_text().replace('"seq"', '"acme"'))
    keys = {"scheme": "w2g64-acme", "export": None, "compare": ["rtn"]}
    plan, before = edited(place, model, plugin, plugin, monkeypatch, **keys)
    assert reached(plan, before) == [step.name for step in plan.steps]
    assert difference(before[plan.steps[0].name], plan.facts(plan.steps[0])) == ["the source of acme_grid was edited"]


def test_a_file_that_is_a_default_is_a_file_too() -> None:
    class Options(rqat.Options):
        path: rqat.File = "rows.jsonl"  # type: ignore[assignment]

    assert [(name, file.path) for name, file in files_of(Options())] == [("path", Path("rows.jsonl"))]


def test_options_that_are_marked_count_for_nothing_at_any_depth() -> None:
    class Inner(BaseModel):
        told: Annotated[int, rqat.Neutral("what is told")] = 1
        other: int = 1

    class Options(rqat.Options):
        bound: Annotated[int, rqat.Neutral("when it stops")] = 1
        inner: Inner = Inner()
        several: list[Inner] = Field(default_factory=lambda: [Inner()])

    def facts(**given: Any) -> Any:
        card = Card("source", "acme", Options, "", "acme", "acme", "1")
        return part_facts(Use(card, Options.model_validate(given)))

    plain = facts()
    assert plain["options"] == {"inner": {"other": 1}, "several": [{"other": 1}]}
    assert facts(bound=2, inner={"told": 2}, several=[{"told": 3}]) == plain
    assert facts(inner={"other": 2}) != plain
