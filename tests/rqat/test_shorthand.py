"""Shorthands of a recipe: what a name, or a list of parts one after another, stands for, and where it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rqat import RecipeError
from rqat.recipe import LoadedRecipe, built_recipe, load_recipe


def quantize(written: Any, *overrides: str) -> dict[str, Any]:
    recipe = built_recipe({"name": "a", "model": "some/model", "quantize": written}, {}, overrides).recipe
    return recipe.quantize.model_dump(exclude={"skip", "indivisible"})


def test_a_name_and_a_list_of_one_are_the_same() -> None:
    whole = {"method": "gptq", "transforms": ()}
    assert quantize("gptq") == quantize(["gptq"]) == quantize({"method": "gptq"}) == whole


def test_the_last_of_a_list_quantizes_and_the_others_stand_in_front() -> None:
    expected = {"method": "gptq", "damp": 0.1, "transforms": ({"method": "rotate", "seed": 1}, {"method": "smooth"})}
    listed = [{"method": "rotate", "seed": 1}, "smooth", {"method": "gptq", "damp": 0.1}]
    assert quantize(listed) == quantize(expected) == expected


def test_set_reaches_them_by_index_and_by_name() -> None:
    found = quantize(["rotate", "gptq"], "quantize.transforms.0.seed=2", "quantize.transforms.rotate.size=4")
    assert found["transforms"] == ({"method": "rotate", "seed": 2, "size": 4},)
    assert quantize("rtn", "quantize=[rotate, gptq]", "quantize.damp=0.5")["damp"] == 0.5


RECIPE = """\
name: a
model: some/model
quantize:
  - method: rotate
    seed: 1
  - smooth
  - method: gptq
    damp: 0.02
compare:
  - [rotate, rtn]
  - gptq
"""


def read(tmp_path: Path, text: str = RECIPE, name: str = "a.yaml") -> LoadedRecipe:
    (tmp_path / name).write_text(text)
    return load_recipe(tmp_path / name)


def test_every_value_keeps_its_line(tmp_path: Path) -> None:
    loaded = read(tmp_path)
    place = loaded.place.at("quantize")
    assert place.at("transforms", 0, "method").line == 4
    assert place.at("transforms", 0, "seed").line == 5
    assert place.at("transforms", 1, "method").line == 6
    assert [place.at(key).line for key in ("method", "damp")] == [7, 8]
    assert [entry.method for entry in loaded.recipe.compare] == ["rtn", "gptq"]
    assert [entry.method for entry in loaded.recipe.compare[0].transforms] == ["rotate"]
    assert loaded.place.at("compare", 0, "method").line == 10


def test_a_recipe_that_names_its_quantizer_anew_drops_what_stood_in_front(tmp_path: Path) -> None:
    read(tmp_path)
    for number, (written, left) in enumerate({"gptq": 0, "{damp: 0.1}": 2, "[smooth, rtn]": 1}.items()):
        child = read(tmp_path, f"extends: a.yaml\nquantize: {written}\n", f"child-{number}.yaml")
        assert len(child.recipe.quantize.transforms) == left, written


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ([], "quantize.method: is missing."),
        ([1, "gptq"], "quantize.transforms.0: 1 is neither a method nor a mapping."),
        (["rotate", 3], "quantize.method: 3 is not text."),
        ([["rotate"], "gptq"], "quantize.transforms.0: ['rotate'] is neither a method nor a mapping."),
    ],
)
def test_what_is_no_part_is_told(written: Any, problem: str) -> None:
    with pytest.raises(RecipeError, match="quantize") as caught:
        quantize(written)
    assert [line.strip() for line in caught.value.problems] == [problem]


def test_a_number_is_the_mapping_it_is_short_for(tmp_path: Path) -> None:
    """So its other keys can be said, too: by `--set`, and by a recipe that extends it."""
    (tmp_path / "base.yaml").write_text("name: a\nmodel: some/model\nbudget: 2.8\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nbudget: {samples: 4}\n")
    for path, overrides in (("base.yaml", ["budget.samples=4"]), ("own.yaml", [])):
        keys = load_recipe(tmp_path / path, overrides).recipe.budget
        assert (keys.size, keys.samples) == ("2.8bits", 4)
