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
