"""YAML -> Recipe: keys and their lines, `extends`, `--set`, all errors at once. Knows no plugin.

Beyond the keys of `rqat.keys` a recipe file may hold

    extends: other      a shipped recipe or a file (relative to this one) whose values stand where this one has none;
                        mappings are merged and lists replaced, but `train: {kd: {lr: 1e-5}}` changes one entry of a
                        list; naming another plugin drops the old one's options
    model: path         a string where a mapping is expected is the key that names it, here `{path: ...}`;
                        likewise `quantize: gptq`, `calibration: arith`, `data: gsm8k`, `teacher: path`,
                        `evaluate: [math500]`, or `evaluate: math500` for a list of one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from .errors import RecipeError, UnknownName
from .keys import (
    CalibrationKeys,
    DataKeys,
    EvaluateKeys,
    ExportKeys,
    ModelKeys,
    PluginKeys,
    QuantizeKeys,
    Recipe,
    TrainKeys,
)
from .problems import Keys, Place, model_at, problems_of, unknown_key
from .yaml_lines import parse_value, read_yaml

if TYPE_CHECKING:
    from .registry import Card, Kind, Registry

NAMED_BY: dict[type[BaseModel], str] = {
    ModelKeys: "path",
    CalibrationKeys: "source",
    DataKeys: "source",
    QuantizeKeys: "method",
    TrainKeys: "objective",
    ExportKeys: "format",
    EvaluateKeys: "task",
}
"""For every mapping that is about one thing, the key that names the thing."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where each of its values was written.

    Attributes:
        recipe: validated, except for what belongs to plugins.
        place: of the top of the recipe; `place.at("train", 0, "lr")` prints as file, line and key.
        path: the file; None for a recipe that a command built from its flags.
    """

    recipe: Recipe
    place: Place
    path: Path | None = None


def recipe_folder() -> Path:
    """Folder of the recipes that come with rqat: in the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with rqat, by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def find_recipe(name: str | Path, *, beside: Path | None = None, where: object = "") -> Path:
    """The file behind a path or a shipped recipe's name; a file comes first.

    Args:
        beside: folder that relative paths start from; None is the current one.
        where: file, line and key the name was read from.

    Raises:
        UnknownName: there is neither.
    """
    path = beside / name if beside else Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    bare = str(name).removesuffix(".yaml")
    if bare in shipped:
        return shipped[bare]
    error = UnknownName(bare, "recipe", shipped, where=str(where))
    if path.suffix in (".yaml", ".yml"):
        error.hint = f"There is no file '{path}'. {error.hint}"
    raise error


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Reads a recipe by name or path, with `extends` resolved and `--set` applied.

    Args:
        overrides: such as `train.0.lr=1e-5`; entries of a list by index or by name (`train.kd.lr`); values are YAML.

    Raises:
        RecipeError: every problem, each with file, line and key.
        UnknownName: there is no such recipe.
    """
    path = find_recipe(name)
    data, origins = _read(path, ())
    return _validated(data, origins, path, overrides)


def built_recipe(data: Mapping[str, Any], flags: Mapping[Keys, str], overrides: Sequence[str] = ()) -> LoadedRecipe:
    """A recipe that a command built; `flags` says which flag the value under some keys came from."""
    copied = deepcopy(dict(data))
    _spell_out(copied)
    return _validated(copied, dict(flags), None, overrides)


def _validated(
    data: dict[str, Any], origins: dict[Keys, str], path: Path | None, overrides: Sequence[str]
) -> LoadedRecipe:
    problems: list[str] = []
    for override in overrides:
        try:
            _override(override, data, origins)
        except RecipeError as error:
            problems += error.problems
    place = Place(origins)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(problems + problems_of(error, Recipe, place)) from None
    if problems:
        raise RecipeError(problems)
    return LoadedRecipe(recipe, place, path)


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], dict[Keys, str]]:
    """A file, merged over the one it extends."""
    data, origins = read_yaml(path, path.name if path.parent == recipe_folder() else str(path))
    _spell_out(data)
    if "extends" not in data:
        return data, origins
    parent, place = data.pop("extends"), Place(origins, ("extends",))
    if not isinstance(parent, str):
        raise RecipeError([f"{place}: takes the name of one recipe, not {parent!r}."])
    parent_path = find_recipe(parent, beside=path.parent, where=place)
    chain = (*chain, path.resolve())
    if parent_path.resolve() in chain:
        circle = " -> ".join(found.name for found in (*chain, parent_path))
        raise RecipeError([f"{place}: recipes extend each other in a circle: {circle}."])
    base, base_origins = _read(parent_path, chain)
    _merge(base, data, base_origins, origins, ())
    return base, base_origins


def _merge(
    base: dict[str, Any], over: dict[str, Any], base_origins: dict[Keys, str], origins: Mapping[Keys, str], keys: Keys
) -> None:
    """Writes `over` into `base`, and where its values came from into `base_origins`."""
    _drop_options(base, over, keys)
    if not keys:
        base_origins[()] = origins[()]
    for key, value in over.items():
        inside = (*keys, key)
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            base_origins[inside] = origins[inside]
            _merge(base[key], value, base_origins, origins, inside)
        elif isinstance(value, dict) and isinstance(base.get(key), list):
            _merge_entries(base[key], value, base_origins, origins, inside)
        else:
            base[key] = value
            for old in [old for old in base_origins if old[: len(inside)] == inside]:
                del base_origins[old]
            base_origins.update({new: place for new, place in origins.items() if new[: len(inside)] == inside})


def _merge_entries(
    base: list[Any], over: dict[str, Any], base_origins: dict[Keys, str], origins: Mapping[Keys, str], keys: Keys
) -> None:
    """Merges `{kd: {...}, 1: {...}}` into the entries of a list that it names."""
    for part, value in over.items():
        place = origins[*keys, part]
        index = _index(part, base, keys, place)
        if not (isinstance(value, dict) and isinstance(base[index], dict)):
            raise RecipeError(
                [f"{place} {'.'.join([*map(str, keys), part])}: takes the keys to change, not {value!r}."]
            )
        moved = {
            (*keys, index, *old[len(keys) + 1 :]): origin
            for old, origin in origins.items()
            if old[: len(keys) + 1] == (*keys, part)
        }
        _merge(base[index], value, base_origins, moved, (*keys, index))


def _drop_options(base: dict[str, Any], over: Mapping[str, Any], keys: Keys) -> None:
    """When `over` names another plugin than `base`, the old plugin's options go; the host's keys stay."""
    model = model_at(Recipe, keys)
    name_key = NAMED_BY.get(model) if model else None
    if model is None or name_key is None or not issubclass(model, PluginKeys):
        return
    if name_key in over and name_key in base and over[name_key] != base[name_key]:
        for option in set(base) - set(model.model_fields):
            del base[option]


def _spell_out(data: dict[str, Any]) -> None:
    """Writes `quantize: gptq` as `quantize: {method: gptq}`, wherever one thing is named."""

    def spelled(value: Any, model: type[BaseModel]) -> Any:
        return {NAMED_BY[model]: value} if isinstance(value, str) else value

    for key, info in Recipe.model_fields.items():
        model = model_at(Recipe, (key,))
        if key not in data or model is None:
            continue
        if isinstance(data[key], str | list) and "tuple" in str(info.annotation):
            entries = [data[key]] if isinstance(data[key], str) else data[key]
            data[key] = [spelled(item, model) for item in entries]
        else:
            data[key] = spelled(data[key], model)
    train = data.get("train")
    for entry in train if isinstance(train, list) else train.values() if isinstance(train, dict) else ():
        for key in ("data", "teacher"):
            model = model_at(TrainKeys, (key,))
            if isinstance(entry, dict) and key in entry and model is not None:
                entry[key] = spelled(entry[key], model)


def _override(text: str, data: dict[str, Any], origins: dict[Keys, str]) -> None:
    """Applies one `--set key=value`."""
    dotted, equals, written = text.partition("=")
    if not equals or not dotted.strip():
        raise RecipeError([f"--set '{text}': write it as key=value, e.g. --set train.0.lr=1e-5"])
    flag = f"--set {dotted.strip()}"
    value = parse_value(written, flag)
    *parents, last = dotted.strip().split(".")
    current: Any = data
    keys: Keys = ()
    for step, part in enumerate([*parents, last]):
        if isinstance(current, list):
            key: str | int = _index(part, current, keys, flag)
        elif isinstance(current, dict):
            key = part
        else:
            raise RecipeError([f"{flag}: '{'.'.join(map(str, keys))}' is {current!r}; it holds no '{part}'."])
        known = model_at(Recipe, keys)
        if (
            isinstance(key, str)
            and known is not None
            and key not in known.model_fields
            and not issubclass(known, PluginKeys)
        ):
            raise RecipeError(
                [unknown_key(key, known.model_fields, Place({keys: flag}, keys), inside=".".join(map(str, keys)))]
            )
        keys = (*keys, key)
        if step < len(parents):
            if isinstance(current, dict) and current.get(part) is None:
                current[part] = {}
            current = current[key]
    if isinstance(current, dict):
        _drop_options(current, {last: value}, keys[:-1])
    current[keys[-1]] = value
    _spell_out(data)
    for old in [old for old in origins if old[: len(keys)] == keys]:
        del origins[old]
    origins[keys] = flag


def _index(part: str, entries: list[Any], keys: Keys, flag: str) -> int:
    """Index of a list's entry, given as a number or by the name of the entry's plugin."""
    names = [
        entry.get(name) for entry in entries if isinstance(entry, dict) for name in NAMED_BY.values() if name in entry
    ]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    dotted = ".".join(map(str, keys))
    shown = f" or {', '.join(map(str, names))}" if names else ""
    raise RecipeError([f"{flag}: '{dotted}' has no entry '{part}'; write 0 to {len(entries) - 1}{shown}."])


def json_schema(registry: Registry | None = None) -> dict[str, Any]:
    """JSON schema of a recipe file with the options of every known plugin, for editors."""
    if registry is None:
        from .registry import Registry

        registry = Registry.discover()
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    schema["title"] = "rqat recipe"
    schema["properties"]["extends"] = {"type": "string", "description": "A recipe to start from: a name or a file."}
    schema["required"] = []  # a recipe that extends another leaves out what that one has
    for name, info in Recipe.model_fields.items():
        if "tuple" in str(info.annotation):  # `train: {kd: {...}}` changes one entry of an inherited list
            schema["properties"][name] = {"anyOf": [schema["properties"][name], {"type": "object"}, {"type": "string"}]}
    definitions["RewardKeys"] = {"anyOf": [{"type": "number"}, definitions["RewardKeys"]]}
    for model, key in NAMED_BY.items():
        mapping = definitions[model.__name__]
        kind = _KIND_OF.get(model)
        if kind is not None:
            mapping["properties"][key]["examples"] = [card.name for card in registry.cards(kind)]
            mapping["allOf"] = [_when_named(key, card, definitions) for card in registry.cards(kind)]
        mapping["required"] = [name for name in mapping.get("required", ()) if name == key and kind is None]
        definitions[model.__name__] = {"anyOf": [{"type": "string"}, mapping]}
    return schema


_KIND_OF: dict[type[BaseModel], Kind] = {
    CalibrationKeys: "source",
    DataKeys: "source",
    QuantizeKeys: "quantizer",
    TrainKeys: "objective",
    ExportKeys: "exporter",
    EvaluateKeys: "task",
}


def _when_named(key: str, card: Card, definitions: dict[str, Any]) -> dict[str, Any]:
    """`if` the mapping names this plugin, `then` these are its options."""
    options = card.options.model_json_schema()
    definitions.update(options.get("$defs", {}))
    then = {name: options[name] for name in ("properties", "required") if name in options}
    return {"if": {"properties": {key: {"const": card.name}}, "required": [key]}, "then": then}
