"""A sweep's file: which cells it stands for, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rqat.errors import RecipeError, RqatError
from rqat.recipe import load_recipe
from rqat.registry import Registry
from rqat.sweep.cells import Sweep, load_sweep, short_keys
from rqat.sweep.results import Row, table_of

RECIPE: dict[str, Any] = {
    "name": "base",
    "model": "builtin:tiny-reasoner",
    "quantize": "rtn",
    "train": [{"objective": "kd", "data": "arith", "steps": 4, "batch": 4, "max_tokens": 256}],
    "export": None,
    "evaluate": [{"task": "kl", "rows": [{"source": "arith"}], "limit": 4}],
}


def written(folder: Path, sweep: dict[str, Any], recipe: dict[str, Any] = RECIPE) -> Path:
    """Writes a recipe and a sweep of it; the sweep's file."""
    (folder / "base.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"recipe": "base.yaml", **sweep}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def loaded(registry: Registry, folder: Path, **sweep: Any) -> Sweep:
    return load_sweep(written(folder, sweep), registry)


def test_every_combination_is_a_cell(registry: Registry, tmp_path: Path) -> None:
    made = loaded(
        registry,
        tmp_path,
        set={"train.0.steps": 2},
        matrix={"train.kd.lr": [1e-5, 1e-4], "scheme": ["w2g128", "w3g128"]},
    )
    assert made.name == "mine"
    assert made.keys == ("train.kd.lr", "scheme")
    assert [cell.name for cell in made.cells] == [
        "lr=1e-05_scheme=w2g128",
        "lr=1e-05_scheme=w3g128",
        "lr=0.0001_scheme=w2g128",
        "lr=0.0001_scheme=w3g128",
    ]
    assert [cell.plan.recipe.train[0].lr for cell in made.cells] == [1e-5, 1e-5, 1e-4, 1e-4]
    assert {cell.plan.recipe.train[0].steps for cell in made.cells} == {2}
    # Steps that do not depend on the learning rate are the same in both rows of the matrix.
    first, third = made.cells[0].prints, made.cells[2].prints
    assert [name for name in first if first[name] != third[name]] == ["02-train-kd", "05-evaluate-kl-kd"]


def test_cells_may_be_written_out_and_multiplied(registry: Registry, tmp_path: Path) -> None:
    cells = [{"quantize": "rtn"}, {"quantize": {"method": "gptq"}, "calibration": "arith"}]
    made = loaded(registry, tmp_path, cells=cells)
    assert [cell.plan.recipe.quantize.method for cell in made.cells] == ["rtn", "gptq"]
    assert made.cells[0].name == "quantize=rtn"
    assert all(set(cell.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789=-_.+") for cell in made.cells)
    both = loaded(registry, tmp_path, cells=cells, matrix={"train.0.lr": [1e-4, 1e-3, 1e-2]})
    assert len(both.cells) == 6
    assert len({cell.name for cell in both.cells}) == 6


def test_a_cell_has_a_name_of_its_own_and_counts_more_than_what_all_have(registry: Registry, tmp_path: Path) -> None:
    cells = [{"name": "fast", "quantize": "rtn"}, {"train.0.lr": 1e-3}]
    made = loaded(registry, tmp_path, cells=cells, set={"quantize": "hqq"})
    assert [cell.name for cell in made.cells] == ["fast", "lr=0.001"]
    assert [cell.plan.recipe.quantize.method for cell in made.cells] == ["rtn", "hqq"]
    assert made.keys == ("quantize", "train.0.lr")
    both = loaded(registry, tmp_path, cells=cells[:1], matrix={"train.0.lr": [1e-4, 1e-3]})
    assert [cell.name for cell in both.cells] == ["fast_lr=0.0001", "fast_lr=0.001"]


def test_a_table_tells_cells_by_their_values_or_by_their_names_where_those_are_long(
    registry: Registry, tmp_path: Path
) -> None:
    def table(cells: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
        made = loaded(registry, tmp_path, cells=cells)
        columns, rows = table_of(made, [Row(cell, "done") for cell in made.cells])
        return columns[:-2], [row[:-2] for row in rows]

    assert table([{"train.0.lr": 1e-3}]) == (["lr"], [["0.001"]])
    assert table([{"name": "a", "train.0.lr": 1e-3}, {}]) == (["cell", "lr"], [["a", "0.001"], ["all", ""]])
    section = {"objective": "kd", "data": "arith", "steps": 2}
    assert table([{"name": "b", "train": [section]}]) == (["cell"], [["b"]])


def test_the_shortest_ending_that_no_other_key_has() -> None:
    assert short_keys(["train.0.lr", "train.1.lr", "scheme", "train.0.scale_lr"]) == {
        "train.0.lr": "0.lr",
        "train.1.lr": "1.lr",
        "scheme": "scheme",
        "train.0.scale_lr": "scale_lr",
    }


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ({}, "mine.yaml: there is neither a matrix nor a list of cells"),
        ({"matrix": {"train.0.lr": []}}, "mine.yaml:3 matrix.train.0.lr: no value"),
        ({"matrix": {"train.0.lr": [1, 1]}}, "a value stands there twice"),
        ({"matrix": {"train.0.rl": [1]}}, "'rl'"),
        ({"matrix": {"train.0.lr": [0.1, "x"]}}, "mine.yaml:3 matrix.train.0.lr: 'x' is not a number"),
        ({"matrix": {"train.0.lr": [1]}, "cells": [{"train.0.lr": 2}]}, "stands in the matrix, too"),
        ({"matrix": {"train.0.lr": [1]}, "set": {"train.0.lr": 2}}, "is what the cells differ in"),
        ({"cells": [{"scheme": "w2g128"}, {"scheme": "w9"}]}, "mine.yaml:4 cells.1.scheme"),
        ({"set": {"scheme": "w2g128"}, "cells": [{"scheme": "w9"}]}, "mine.yaml:5 cells.0.scheme"),
        ({"cells": [{"name": "a/b"}]}, "cells.0.name: 'a/b' names a folder"),
        ({"cells": [{"name": 3}]}, "cells.0.name: 3 names a folder"),
        ({"cells": [{"name": "a"}, {"name": "a", "train.0.lr": 2}]}, "two cells are called a"),
        ({"matrix": {"train.3.lr": [1]}}, "'train' has no entry '3'"),
        ({"matrx": {}}, "'matrx' is not a key. Did you mean 'matrix'?"),
        ({"matrix": {"train.0.lr": [1]}, "recipe": "nobody"}, "mine.yaml:1 recipe: 'nobody' is not a recipe"),
        ({"matrix": {"train.0.lr": [1]}, "stop": {"factor": 0.5}}, "stop.factor"),
        ({"matrix": {"train.0.lr": [1]}, "stop": "kl"}, "mine.yaml:5 stop: no cell watches 'kl'. Watched: none"),
        (
            {"matrix": {"train.0.lr": [1]}, "stop": "kll", "set": {"train.0.watch": {"task": "kl", "rows": "arith"}}},
            "no cell watches 'kll'. Watched: kl, perplexity.",
        ),
        (
            {
                "matrix": {"train.0.lr": [1]},
                "stop": {"after": 500},
                "set": {"train.0.watch": {"task": "kl", "rows": "arith"}},
            },
            "stop.after: 500: no training that is watched has more than",
        ),
        ({"matrix": {"train.0.lr": [1]}, "name": "a/b"}, "'a/b' names a folder"),
    ],
)
def test_mistakes_are_told_with_their_place(
    registry: Registry, tmp_path: Path, sweep: dict[str, Any], says: str
) -> None:
    with pytest.raises(RqatError) as caught:
        loaded(registry, tmp_path, **sweep)
    assert says in str(caught.value).replace(f"{tmp_path}/", "")


def test_the_example_of_the_documentation_plans(registry: Registry) -> None:
    made = load_sweep(Path(__file__).parents[3] / "docs" / "examples" / "sweep.yaml", registry)
    assert len(made.cells) == 4
    assert len({fingerprint for cell in made.cells for fingerprint in cell.prints.values()}) == 9 + 3 * 4


def screening(registry: Registry, name: str, *overrides: str) -> Sweep:
    """A sweep of the documentation, planned for the embedded model: fingerprints need weights."""
    file = Path(__file__).parents[3] / "docs" / "examples" / f"{name}.yaml"
    return load_sweep(file, registry, ["model=builtin:tiny-reasoner", *overrides])


def test_the_screening_of_a_real_model(registry: Registry) -> None:
    made = screening(registry, "screen-kd")
    shared, own = {name.split("-", 1)[1] for name in made.cells[0].prints}, ("train-kd", "evaluate-kl-kd")
    assert {"produce-traces", "quantize-gptq", *own} <= shared
    assert len({fingerprint for cell in made.cells for fingerprint in cell.prints.values()}) == (
        len(shared) - len(own) + 10 * len(own)
    )


@pytest.mark.parametrize(("name", "cells"), [("screen-from-block-ap", 9), ("screen-loss", 15)])
def test_the_screenings_from_block_ap(registry: Registry, name: str, cells: int) -> None:
    """All cells start from one quantized model, and each trains in a way of its own."""
    made = screening(registry, name)
    starts = {cell.prints["03-quantize-block-ap"] for cell in made.cells}
    trained = {found for cell in made.cells for name, found in cell.prints.items() if name.endswith("-train-kd")}
    assert (len(made.cells), len(starts), len(trained)) == (cells, 1, cells)


def test_the_screening_of_answers(registry: Registry) -> None:
    """Right answers are written once, for calibration and training; one cell goes on from another's distillation."""
    made = screening(registry, "screen-answers", "budget={size: 4.4}")
    assert [cell.name for cell in made.cells] == ["right-answers", "cross-entropy", "own-completions"]
    assert len({cell.prints["01-produce-traces"] for cell in made.cells}) == 1
    first, second, third = (cell.prints["06-train-kd"] for cell in made.cells)
    assert first == third != second
    assert "07-train-grpo" in made.cells[2].prints


def test_the_screening_of_gptq(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a file of the name that the comment says is there."""
    (tmp_path / "wikitext2_test_raw.txt.gz").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    made = screening(registry, "screen-gptq")
    assert len(made.cells) == 16
    prints = [cell.prints["02-quantize-gptq"] for cell in made.cells]
    assert len(set(prints)) == 16


def test_the_command_line_counts_more_than_the_file(registry: Registry, tmp_path: Path) -> None:
    file = written(tmp_path, {"set": {"train.0.steps": 3}, "matrix": {"train.0.lr": [1e-5, 2e-5]}})
    made = load_sweep(file, registry, ["train.0.steps=5"])
    assert [cell.plan.recipe.train[0].steps for cell in made.cells] == [5, 5]
    assert all("train.0.steps=5" in cell.overrides for cell in made.cells)
    with pytest.raises(RqatError) as caught:
        load_sweep(file, registry, ["train.0.lr=3e-5"])
    assert "--set train.0.lr: is what the cells differ in. Change the file." in str(caught.value)
    with pytest.raises(RqatError) as caught:
        load_sweep(file, registry, ["train.0.stepps=5"])
    assert "--set train.0.stepps" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model.trust_remote_code": True}, "cannot allow a checkpoint's own code to run"),
        (
            {"train.0.teacher": {"path": "builtin:tiny-reasoner", "trust_remote_code": True}},
            "cannot allow a checkpoint",
        ),
        ({"evaluate": [{"task": "livecodebench", "sandbox": "true"}]}, r"cannot name a program to be run \(sandbox\)"),
    ],
)
def test_a_sweep_allows_no_more_than_a_recipe(
    registry: Registry, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    """What it sets counts as given on the command line, by which alone code of others may be run."""
    with pytest.raises(RqatError, match=told):
        loaded(registry, tmp_path, set=given, matrix={"train.0.lr": [1e-5]})


def test_a_recipe_and_a_sweep_that_are_taken_for_each_other_are_told_so(registry: Registry, tmp_path: Path) -> None:
    sweep = written(tmp_path, {"matrix": {"train.kd.lr": [1e-5]}})
    with pytest.raises(RqatError) as caught:
        load_recipe(sweep)
    assert f"{sweep}:1 recipe: this is a sweep, not a recipe: run `rqat sweep {sweep}`." in str(caught.value)
    recipe = tmp_path / "base.yaml"
    with pytest.raises(RqatError) as caught:
        load_sweep(recipe, registry)
    told = (
        f"{recipe}: this is a recipe, not a sweep; run `rqat qat {recipe}`, or name it in a sweep: `recipe: base.yaml`"
    )
    assert told in str(caught.value)


def test_a_model_that_cannot_be_read_is_told_with_its_cells(registry: Registry, tmp_path: Path) -> None:
    matrix = {"train.0.lr": [1e-4, 1e-3], "model": ["builtin:tiny-reasoner", str(tmp_path / "nosuch")]}
    with pytest.raises(RecipeError) as error:
        load_sweep(written(tmp_path, {"matrix": matrix}), registry)
    (line,) = error.value.problems
    assert "cell lr=0.0001_model=" in line
    assert "and 1 more: The model folder" in line
    assert line.endswith("Check the path.")
