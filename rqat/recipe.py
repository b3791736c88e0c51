"""YAML -> Recipe: keys and their lines, `extends`, `--set`, all errors at once. Knows no plugin and no stage by name.

Beyond the keys of a recipe a file may hold

    extends: other      a shipped recipe or a file (relative to this one) whose values stand where this one has none;
                        mappings are merged and lists replaced, but `train: {kd: {lr: 1e-5}}` changes one entry of a
                        list; naming another plugin drops the old one's options
    train: {grpo: null} drops an inherited entry, as `train: -grpo` does, or `[-kd, -grpo]`
    model: path         a string where a mapping is expected is the key that names it, here `{path: ...}`;
                        likewise `quantize: gptq`, `calibration: arith`, `data: gsm8k`, `teacher: path`,
                        `evaluate: [math500]`, or `evaluate: math500` for a list of one
    quantize: [a, b]    what is done to the model before it is quantized, in order, and then the quantizer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ValidationError, create_model

from .errors import RecipeError, RqatError, UnknownName
from .keys import Keys, ModelKeys, Neutral, PluginKeys
from .problems import KeyPath, Place, model_at, models_in, problems_of, unknown_key
from .shorthand import dropped, named_by, spell_out, strays
from .stages import sections
from .yaml_lines import given_value, read_yaml

Tracker = Literal["tensorboard", "trackio", "wandb"]
"""What is told the figures of a training, by the names that transformers has for them."""

OLD_SPELLINGS = {"undivisible": "indivisible", "arms": "variants"}
"""Keys that were called otherwise once, and are still read."""


def _spelled_scheme(value: Any) -> Any:
    """Refuses what is neither text nor a mapping of texts, in words that name the entry."""
    if not isinstance(value, str | dict):
        raise ValueError(f"{value!r} is not text.")
    for pattern, text in value.items() if isinstance(value, dict) else ():
        if not isinstance(text, str):
            raise ValueError(f"'{pattern}' is {text!r}, which is not the spelling of a scheme.")
    return value


def _listed(value: Any) -> Any:
    """One name as a list of one."""
    return [value] if isinstance(value, str) else value


class RecipeKeys(Keys):
    """A whole recipe: the keys of the run, and below them one section or more for every stage.

    Attributes:
        name: of the run; its folder is `runs/<name>` unless `-o` says otherwise.
        model: the model to compress, and the teacher of objectives that need one and name no other.
        scheme: spelling of the weight grid ("w2g128"), or a mapping of `default` and shell patterns on full names of
            layers to spellings (`{default: w2g128, "*.down_proj": w3g128, lm_head: w8g128}`); of several patterns that
            match, the longest counts. The head is quantized only where a pattern names it.
        log: trackers that are told the figures of a training besides training.jsonl: `tensorboard`, `trackio`, `wandb`.
    """

    name: str
    model: ModelKeys
    scheme: Annotated[str | dict[str, str], BeforeValidator(_spelled_scheme)] = "w2g128"
    log: Annotated[tuple[Tracker, ...], BeforeValidator(_listed), Neutral("who is told of the figures")] = ()

    if TYPE_CHECKING:

        def __getattr__(self, section: str) -> Any: ...


def _assembled() -> type[RecipeKeys]:
    """`RecipeKeys` with the sections of all stages."""
    fields: dict[str, Any] = {}
    lines = []
    for section in sections():
        model: Any = section.model
        kind, default = (tuple[model, ...], ()) if section.many else (model, section.default)
        fields[section.key] = (kind | None if section.optional else kind, default)
        lines.append(f"        {section.key}: {section.about}\n")
    described = f"{(RecipeKeys.__doc__ or '').rstrip()}\n{''.join(lines)}    "
    return create_model("Recipe", __base__=RecipeKeys, __module__=__name__, __doc__=described, **fields)


Recipe = _assembled()


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where each of its values was written.

    Attributes:
        recipe: validated, except for what belongs to plugins.
        place: of the top of the recipe; `place.at("train", 0, "lr")` prints as file, line and key.
        path: the file; None for a recipe that a command built from its flags.
    """

    recipe: RecipeKeys
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
    if path.is_dir():
        inside = sorted(found.name for pattern in ("*.yaml", "*.yml") for found in path.glob(pattern))
        some = ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "")
        raise RqatError(
            f"{where}: '{path}' is a folder, not a recipe.".removeprefix(": "),
            hint=f"Name a file in it: {some}."
            if inside
            else "It holds no .yaml file; `rqat recipes ls` lists recipes.",
        )
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


def built_recipe(data: Mapping[str, Any], flags: Mapping[KeyPath, str], overrides: Sequence[str] = ()) -> LoadedRecipe:
    """A recipe that a command built; `flags` says which flag the value under some keys came from."""
    copied, origins = deepcopy(dict(data)), dict(flags)
    spell_out(copied, Recipe, origins)
    return _validated(copied, origins, None, overrides)


def _validated(
    data: dict[str, Any], origins: dict[KeyPath, str], path: Path | None, overrides: Sequence[str]
) -> LoadedRecipe:
    problems: list[str] = []
    for override in overrides:
        try:
            _override(override, data, origins)
        except RecipeError as error:
            problems += error.problems
    place = Place(_in_new_spelling(data, origins))
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(problems + (list(strays(data, Recipe, place)) or problems_of(error, Recipe, place))) from None
    if problems:
        raise RecipeError(problems)
    return LoadedRecipe(recipe, place, path)


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """A file, merged over the one it extends."""
    data, origins = read_yaml(path, path.name if path.parent == recipe_folder() else str(path))
    if "recipe" in data and not {"model", "extends"} & data.keys():
        raise RecipeError([f"{Place(origins, ('recipe',))}: this is a sweep, not a recipe: run `rqat sweep {path}`."])
    origins = _in_new_spelling(data, origins)
    spell_out(data, Recipe, origins)
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
    base: dict[str, Any],
    over: dict[str, Any],
    base_origins: dict[KeyPath, str],
    origins: Mapping[KeyPath, str],
    keys: KeyPath,
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
    base: list[Any],
    over: dict[str, Any],
    base_origins: dict[KeyPath, str],
    origins: Mapping[KeyPath, str],
    keys: KeyPath,
) -> None:
    """Merges `{kd: {...}, 1: {...}, grpo: null}` into the entries of a list that it names; null drops one."""
    away = []
    for part, value in over.items():
        place = origins.get((*keys, part), origins.get(keys, ""))
        index = _index(part.removeprefix("-") if value is None else part, base, keys, place)
        if value is None:
            away.append(index)
            continue
        if not (isinstance(value, dict) and isinstance(base[index], dict)):
            raise RecipeError(
                [f"{place} {'.'.join([*map(str, keys), part])}: takes the keys to change, or null, not {value!r}."]
            )
        moved = {
            (*keys, index, *old[len(keys) + 1 :]): origin
            for old, origin in origins.items()
            if old[: len(keys) + 1] == (*keys, part)
        }
        _merge(base[index], value, base_origins, moved, (*keys, index))
    for index in sorted(set(away), reverse=True):
        _drop_entry(base, index, base_origins, keys)


def _drop_entry(entries: list[Any], index: int, origins: dict[KeyPath, str], keys: KeyPath) -> None:
    """Takes an entry out of a list; the places of those behind it move up."""
    del entries[index]
    depth = len(keys)
    behind = {old: place for old, place in origins.items() if len(old) > depth and old[:depth] == keys}
    for old in behind:
        del origins[old]
    for old, place in behind.items():
        number = old[depth]
        if isinstance(number, int) and number != index:
            origins[*keys, number - (number > index), *old[depth + 1 :]] = place


def _drop_options(base: dict[str, Any], over: Mapping[str, Any], keys: KeyPath) -> None:
    """When `over` names another plugin than `base`, the old plugin's options go; the host's keys stay."""
    model = model_at(Recipe, keys)
    if model is None or not issubclass(model, PluginKeys):
        return
    name_key = model.named_by
    if name_key in over and name_key in base and over[name_key] != base[name_key]:
        for option in set(base) - set(model.model_fields):
            del base[option]


def _in_new_spelling(
    data: dict[str, Any], origins: Mapping[KeyPath, str], model: type[BaseModel] = Recipe
) -> dict[KeyPath, str]:
    """Renames keys that were called otherwise once; returns where the values came from, under the new names."""
    moved = dict(origins)

    def rename(value: Any, model: type[BaseModel] | None, keys: KeyPath) -> None:
        if isinstance(value, list):
            for index, entry in enumerate(value):
                rename(entry, model, (*keys, index))
        if not isinstance(value, dict) or model is None:
            return
        for old, new in OLD_SPELLINGS.items():
            if old in value and new in model.model_fields and new not in value:
                value[new] = value.pop(old)
                for path in [path for path in moved if path[: len(keys) + 1] == (*keys, old)]:
                    moved[*keys, new, *path[len(keys) + 1 :]] = moved.pop(path)
        for key, inner in value.items():
            known = key in model.model_fields
            rename(inner, model_at(model, (key,)) if known else model, (*keys, key))

    rename(data, model, ())
    return moved


def _override(text: str, data: dict[str, Any], origins: dict[KeyPath, str]) -> None:
    """Applies one `--set key=value`."""
    dotted, equals, written = text.partition("=")
    if not equals or not dotted.strip():
        raise RecipeError([f"--set '{text}': write it as key=value, e.g. --set train.0.lr=1e-5"])
    flag = f"--set {dotted.strip()}"
    value = given_value(written, flag)
    *parents, last = dotted.strip().split(".")
    current: Any = data
    keys: KeyPath = ()
    for step, part in enumerate([*parents, last]):
        if isinstance(current, list):
            key: str | int = _index(part, current, keys, flag)
        elif isinstance(current, dict):
            key = part = _new_spelling(part, model_at(Recipe, keys))
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
    if isinstance(current, list) and value is None:  # `--set train.grpo=null`
        _drop_entry(current, int(keys[-1]), origins, keys[:-1])
        return
    there = current.get(keys[-1]) if isinstance(current, dict) else None
    if isinstance(there, list) and (names := dropped(value)):  # `--set train=-grpo`
        for name in names:
            _drop_entry(there, _index(name, there, keys, flag), origins, keys)
        return
    if isinstance(current, dict):
        _drop_options(current, {str(keys[-1]): value}, keys[:-1])
    current[keys[-1]] = value
    for old in [old for old in origins if old[: len(keys)] == keys]:
        del origins[old]
    origins[keys] = flag
    spell_out(data, Recipe, origins)


def _new_spelling(key: str, model: type[BaseModel] | None) -> str:
    new = OLD_SPELLINGS.get(key, key)
    return new if model is not None and new in model.model_fields else key


def _index(part: str, entries: list[Any], keys: KeyPath, flag: str) -> int:
    """Index of a list's entry, given as a number or by the name of the entry's plugin."""
    model = model_at(Recipe, (*keys, 0))
    own = named_by(model) if model is not None else ""
    by = {own} if own else {name for other in models_in(Recipe) if (name := named_by(other))}
    named = [
        (entry[name], index)
        for index, entry in enumerate(entries)
        if isinstance(entry, dict)
        for name in sorted(by & entry.keys())
    ]
    names = [name for name, _ in named]
    if names.count(part) > 1:
        which = " or ".join(str(index) for name, index in named if name == part)
        raise RecipeError([f"{flag}: '{'.'.join(map(str, keys))}' has several entries {part!r}; write {which}."])
    if part in names:
        return named[names.index(part)][1]
    if part.isdecimal() and len(part) < 10 and int(part) < len(entries):
        return int(part)
    dotted = ".".join(map(str, keys))
    shown = f" or {', '.join(map(str, names))}" if names else ""
    known = f"write 0 to {len(entries) - 1}{shown}" if entries else "it has none"
    raise RecipeError([f"{flag}: '{dotted}' has no entry {part!r:.60}; {known}."])
