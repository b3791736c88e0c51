"""A sweep's file, and the cells it stands for.

recipe: quickstart            a shipped recipe or a file, relative to this one
set: {train.kd.steps: 60}     keys of every cell, as `--set` takes them
matrix:                       every combination of these values is a cell
  train.kd.lr: [1e-5, 1e-4]
  train.kd.scale_lr: [1e-4, 1e-3]
cells:                        in place of the matrix, or multiplied with it: cells written out
  - {quantize: gptq}
  - {name: fast, quantize: rtn, train.kd.lr: 1e-3}    with a name of its own
stop: {figure: kl, after: 20, factor: 1.5}
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from ..errors import RecipeError, RqatError
from ..figures import few
from ..keys import Keys
from ..plan import Plan, build_plan
from ..problems import Place, problems_of
from ..recipe import find_recipe, load_recipe
from ..registry import Registry
from ..stage import Step
from ..yaml_lines import read_yaml

LONGEST_NAME = 80
"""Characters of a cell's name, which names its folder."""

CALLED = "name"
"""Of a cell's entries the one that is no key of the recipe."""


class StopKeys(Keys):
    """When a cell is given up: a figure that its training watches is far worse than another cell's at the same step.

    Attributes:
        figure: which of the watched ones; less is better.
        after: optimizer steps every cell is left.
        factor: how many times the best value of all cells at that step is too much.
    """

    named_by: ClassVar[str] = "figure"

    figure: str = "kl"
    after: int = Field(default=20, ge=1)
    factor: float = Field(default=1.5, gt=1)


class SweepKeys(Keys):
    """A sweep's file.

    Attributes:
        name: its folder is `runs/<name>` unless `-o` says otherwise. None is the file's name.
        recipe: a shipped recipe or a file, relative to this one.
        set: keys of the recipe with the value they have in every cell that has none of its own.
        matrix: keys of the recipe with the values to combine.
        cells: cells written out, each a mapping of keys to values; each is combined with the whole matrix. `name` among
            them is no key of the recipe: it calls the cell, in place of its keys and values.
        stop: when a cell is given up. None is never.
        slurm: settings of every job on a cluster, as submitit takes them (`{slurm_partition: gpu, timeout_min: 60}`).
    """

    name: str | None = None
    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)
    matrix: dict[str, list[Any]] = Field(default_factory=dict)
    cells: list[dict[str, Any]] = Field(default_factory=list)
    stop: StopKeys | None = None
    slurm: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its folder: what the file calls it, or made of its values.
        called: whether the file gives it a name.
        values: what it has of its own, by key of the recipe.
        overrides: those and the values of every cell, as `rqat qat --set` takes them.
        prints: fingerprints of the plan's steps, by name.
    """

    name: str
    called: bool
    values: Mapping[str, Any]
    overrides: tuple[str, ...]
    plan: Plan
    prints: Mapping[str, str]

    def step(self, name: str) -> Step:
        """The step called `name`."""
        return self.plan.step(name)


@dataclass(frozen=True)
class Sweep:
    """All cells, in the order they were written.

    Attributes:
        recipe: the recipe's file.
        keys: of the recipe, those that differ between cells.
    """

    name: str
    recipe: Path
    keys: tuple[str, ...]
    cells: tuple[Cell, ...]
    stop: StopKeys | None
    slurm: Mapping[str, Any]


def load_sweep(path: Path, registry: Registry, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep's file and plans every cell.

    Args:
        overrides: of every cell, such as `model=PATH`; they count more than the file's `set`.

    Raises:
        RecipeError: every problem of the file and of all cells, each once, such as a model that cannot be read.
    """
    data, origins = read_yaml(path, str(path))
    place = Place(origins)
    if "recipe" not in data and {"model", "extends"} & data.keys():
        asked = f"run `rqat qat {path}`, or name it in a sweep: `recipe: {path.name}`, with `matrix` or `cells`"
        raise RecipeError([f"{path}: this is a recipe, not a sweep; {asked}."])
    if isinstance(data.get("stop"), str):
        data["stop"] = {"figure": data["stop"]}
    try:
        keys = SweepKeys.model_validate(data)
    except ValidationError as error:
        raise RecipeError(problems_of(error, SweepKeys, place)) from None
    recipe = find_recipe(keys.recipe, beside=path.parent, where=place.at("recipe"))
    given = {override.split("=", 1)[0].strip(): override for override in overrides}
    problems = [*_contradictions(keys, place), *_differing(given, keys)]
    if problems:
        raise RecipeError(problems)
    combined = list(_combined(keys))
    swept = tuple(dict.fromkeys(key for _, values in combined for key in values))
    cells: list[Cell] = []
    refused: dict[str, list[str]] = {}
    for called, values in combined:
        shared, own = ({key: f"{key}={json.dumps(each[key])}" for key in each} for each in (keys.set, values))
        changes = tuple((shared | given | own).values())
        name = _name(called, {key: values[key] for key in keys.matrix} if called else values, swept)
        try:
            plan = build_plan(load_recipe(recipe, changes), registry)
            prints = plan.fingerprints()
        except RecipeError as error:
            problems += [_in_file(problem, values, keys, place, given) for problem in error.problems]
            continue
        except RqatError as error:  # its model, or data that decides a step, cannot be read
            refused.setdefault(str(error), []).append(name)
            continue
        problems += [f"{place}: cell {name}: {found}" for found in _needs_trust(plan)]
        cells.append(Cell(name, bool(called), values, changes, plan, prints))
    problems += [f"{place}: cell {few(names, 1)}: {text}" for text, names in refused.items()]
    if keys.stop is not None and cells and keys.stop.figure not in _watched(cells):
        known = ", ".join(_watched(cells)) or "none; add `watch: {task: kl, ...}` to a training"
        problems.append(f"{place.at('stop')}: no cell watches '{keys.stop.figure}'. Watched: {known}.")
    longest = max((getattr(step.settings, "steps", 0) for step in _watching(cells)), default=0)
    if keys.stop is not None and "after" in keys.stop.model_fields_set and 0 < longest < keys.stop.after:
        told = (
            f"{keys.stop.after}: no training that is watched has more than {longest} steps, so nothing would be stopped"
        )
        problems.append(f"{place.at('stop', 'after')}: {told}.")
    problems += [f"{path}: two cells are called {name}." for name in _twice([cell.name for cell in cells])]
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return Sweep(keys.name or path.stem, recipe, swept, tuple(cells), keys.stop, keys.slurm)


def _needs_trust(plan: Plan) -> Iterator[str]:
    """What a file, which may be somebody else's, cannot ask for. Its values count as given on the command line."""
    if _trusts(plan.recipe.model_dump(mode="json")):
        yield "a sweep cannot allow a checkpoint's own code to run (trust_remote_code). Run `rqat qat` for that."
    uses = (use for step in plan.steps for use in step.uses)
    for name in dict.fromkeys(name for use in uses for name in use.commands):
        yield f"a sweep cannot name a program to be run ({name}). Run `rqat qat --set ...` for that."


def _trusts(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("trust_remote_code") is True or any(map(_trusts, value.values()))
    return isinstance(value, list) and any(map(_trusts, value))


def _watching(cells: Sequence[Cell]) -> list[Step]:
    """Trainings of any cell that are watched."""
    return [step for cell in cells for step in cell.plan.steps if step.parts.get("watch") is not None]


def _watched(cells: Sequence[Cell]) -> list[str]:
    """Figures that trainings of any cell watch."""
    uses = (step.parts["watch"] for step in _watching(cells))
    return list(dict.fromkeys(figure for use in uses for figure in use.card.compares))


def _contradictions(keys: SweepKeys, place: Place) -> Iterator[str]:
    called = [(("cells", index, CALLED), cell[CALLED]) for index, cell in enumerate(keys.cells) if CALLED in cell]
    for where, name in [(("name",), "x" if keys.name is None else keys.name), *called]:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            yield f"{place.at(*where)}: {name!r} names a folder: letters, digits, '.', '_' and '-'."
    if not keys.matrix and not keys.cells:
        yield f"{place}: there is neither a matrix nor a list of cells. Write `matrix: {{train.0.lr: [1e-5, 1e-4]}}`."
    for key, values in keys.matrix.items():
        if not values:
            yield f"{place.at('matrix', key)}: no value."
        elif len({json.dumps(value) for value in values}) < len(values):
            yield f"{place.at('matrix', key)}: a value stands there twice."
    for index, cell in enumerate(keys.cells):
        for key in sorted(set(cell) & set(keys.matrix)):
            yield f"{place.at('cells', index, key)}: stands in the matrix, too; choose one."
    for key in sorted(keys.set.keys() & keys.matrix.keys()):
        yield f"{place.at('set', key)}: is what the cells differ in; leave it out here."


def _differing(given: Mapping[str, str], keys: SweepKeys) -> Iterator[str]:
    for key in sorted(given.keys() & _swept(keys)):
        yield f"--set {key}: is what the cells differ in. Change the file."


def _swept(keys: SweepKeys) -> set[str]:
    """Keys of the recipe that cells have values of their own for."""
    return {*keys.matrix, *(key for cell in keys.cells for key in cell)} - {CALLED}


def _in_file(problem: str, values: Mapping[str, Any], keys: SweepKeys, place: Place, given: Mapping[str, str]) -> str:
    """What is wrong with a key of a cell, at its place in the sweep's file, or on the command line."""
    for key in sorted({*keys.set, *values, *given}, key=len, reverse=True):
        if not problem.startswith(f"--set {key}"):
            continue
        if key in given:
            return problem
        index = next((number for number, cell in enumerate(keys.cells) if cell.get(key, ...) == values.get(key)), 0)
        inside = ("matrix", key) if key in keys.matrix else ("cells", index, key) if key in values else ("set", key)
        return f"{place.at(*inside)}{problem.removeprefix(f'--set {key}')}"
    return problem


def _combined(keys: SweepKeys) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the file calls a cell, or nothing, and the cell's values."""
    for cell in keys.cells or [{}]:
        own = {key: value for key, value in cell.items() if key != CALLED}
        for values in itertools.product(*keys.matrix.values()):
            yield cell.get(CALLED, ""), {**own, **dict(zip(keys.matrix, values, strict=True))}


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """For every dotted key its shortest ending that no other has: "lr" of "train.kd.lr"."""
    found = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        others = [other for other in keys if other != key]
        found[key] = next(e for e in endings if e == key or not any(f".{o}".endswith(f".{e}") for o in others))
    return found


def shown(value: Any) -> str:
    """A value as names and tables have it."""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _name(called: str, values: Mapping[str, Any], keys: Sequence[str]) -> str:
    """A name for a folder: what the cell is called, if it is, and its values."""
    short = short_keys(keys)
    told = [f"{short[key]}={shown(value)}" for key, value in values.items()]
    whole = "_".join([called, *told] if called else told) or "all"
    plain = re.sub(r"[^\w.=+-]+", "-", whole).strip("-.")
    if len(plain) <= LONGEST_NAME and plain == whole:
        return plain
    digest = hashlib.sha256(json.dumps([called, values] if called else values).encode()).hexdigest()[:8]
    return f"{plain[:LONGEST_NAME]}-{digest}"


def _twice(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]
