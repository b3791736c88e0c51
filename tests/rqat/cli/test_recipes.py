"""`rqat recipes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rqat.cli.app import build

RECIPE = """# A recipe of one step
name: mine
model: builtin:tiny-reasoner
scheme: w4g64
quantize: rtn
export: null
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_ls_lists_every_shipped_recipe() -> None:
    from rqat.recipe import shipped_recipes

    result = CliRunner().invoke(build(), ["recipes", "ls", "--json"])
    assert result.exit_code == 0
    assert {entry["name"] for entry in json.loads(result.stdout)} == set(shipped_recipes())


def test_cat_prints_the_file_as_it_is(recipe: Path) -> None:
    assert CliRunner().invoke(build(), ["recipes", "cat", str(recipe)]).stdout == RECIPE


def test_cp_copies_and_overwrites_nothing(recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "copy.yaml"
    assert CliRunner().invoke(build(), ["recipes", "cp", str(recipe), str(target)]).exit_code == 0
    assert target.read_text() == RECIPE
    again = CliRunner().invoke(build(), ["recipes", "cp", str(recipe), str(target)])
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_validate_reports_every_problem_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(RECIPE + "qantize: rtn\nmodle: x\n")
    result = CliRunner().invoke(build(), ["recipes", "validate", str(path)])
    assert result.exit_code == 2
    assert "bad.yaml:7" in result.stderr
    assert "bad.yaml:8" in result.stderr


def test_validate_accepts_a_good_recipe(recipe: Path) -> None:
    result = CliRunner().invoke(build(), ["recipes", "validate", str(recipe)])
    assert result.exit_code == 0, result.stderr
    assert "good" in result.stdout


def test_schema_is_json() -> None:
    schema = json.loads(CliRunner().invoke(build(), ["recipes", "schema"]).stdout)
    assert "quantize" in schema["properties"]


def test_a_full_copy_makes_the_same_plan_and_inherits_nothing(tmp_path: Path) -> None:
    from rqat.filled import filled
    from rqat.plan import build_plan
    from rqat.recipe import load_recipe, shipped_recipes
    from rqat.registry import Registry

    registry = Registry.discover()
    for name, path in shipped_recipes().items():
        target = tmp_path / f"{name}.yaml"
        result = CliRunner().invoke(build(), ["recipes", "cp", name, str(target), "--full"])
        assert result.exit_code == 0, result.stderr
        text = target.read_text()
        assert text.startswith(path.read_text().split("\n", 1)[0])
        assert "\nextends:" not in text
        before, after = (build_plan(load_recipe(each), registry) for each in (path, target))
        assert filled(after) == filled(before)
        for step, same in zip(before.steps, after.steps, strict=True):
            assert (step.name, step.inputs) == (same.name, same.inputs)
            assert [use.card for use in step.parts.values()] == [use.card for use in same.parts.values()]
            assert name != "quickstart" or before.fingerprint(step) == after.fingerprint(same)
    assert "damp: 0.01" in (tmp_path / "quickstart.yaml").read_text()


def test_a_full_copy_needs_no_warning(tmp_path: Path) -> None:
    target = tmp_path / "full.yaml"
    CliRunner().invoke(build(), ["recipes", "cp", "quickstart", str(target), "--full"])
    assert "Warning" not in CliRunner().invoke(build(), ["plan", str(target)]).stderr


def test_a_copy_may_bring_the_schema_for_editors(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    assert CliRunner().invoke(build(), ["recipes", "cp", "quickstart", str(target), "--schema"]).exit_code == 0
    assert target.read_text().splitlines()[0] == "# yaml-language-server: $schema=rqat.schema.json"
    assert "description" in json.loads((tmp_path / "rqat.schema.json").read_text())["properties"]["name"]
    result = CliRunner().invoke(build(), ["recipes", "schema", "-o", str(tmp_path / "other.json")])
    assert "$schema=other.json" in result.stdout
    assert json.loads((tmp_path / "other.json").read_text())["title"] == "rqat recipe"
