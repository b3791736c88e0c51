"""Where a value was written, and what is wrong with it, one readable line per problem.

pydantic finds the problems; this file words them: file and line, key, what is wrong, and the nearest key that exists.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from .errors import nearest

KeyPath = tuple[str | int, ...]
"""The keys that lead from the top of a recipe to a value."""

IS_NOT = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a mapping"),
    "string_type": "text",
}
"""What a value should have been, by pydantic's name of the problem; its own words are those of Python."""

BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "a list or a mapping of {min_length} or more",
}


@dataclass(frozen=True)
class Place:
    """A value's place: `str(place)` is `recipes/mine.yaml:7 train.0.lr`, or `--set train.0.lr`.

    Attributes:
        origins: for the keys of every value, where they were written: `recipes/mine.yaml:7`, or the command-line flag.
        keys: the keys that lead to this value from the top.
    """

    origins: Mapping[KeyPath, str] = field(default_factory=dict)
    keys: KeyPath = ()

    def at(self, *keys: str | int) -> Place:
        """The place of a value inside this one."""
        return Place(self.origins, self.keys + keys)

    @property
    def dotted(self) -> str:
        """The keys, as `--set` takes them."""
        return ".".join(map(str, self.keys))

    @property
    def line(self) -> int:
        """The line it was written on; 0 for the command line."""
        number = self._origin()[0].rpartition(":")[2]
        return int(number) if number.isdecimal() else 0

    def __str__(self) -> str:
        origin, length = self._origin()
        if length and is_flag(origin):  # what the flag says is not said again
            inside = ".".join(map(str, self.keys[length:]))
            if inside.isdecimal() and not origin.startswith("--set "):  # which time a flag was given
                return origin
            return f"{origin}{'.' if origin.startswith('--set ') else ' '}{inside}" if inside else origin
        return f"{origin} {self.dotted}".strip()

    def in_flags(self, text: str) -> str:
        """A text about keys with the flags that a command has for them: `--samples 8` for `calibration.samples: 8`."""
        for keys, flag in self.origins.items():
            if len(keys) > 1 and flag.startswith("--") and not flag.startswith("--set "):
                named = re.escape(".".join(map(str, keys)))
                pattern = rf"(?<![\w.])(?P<set>set )?{named}(?:(?:: |=)(?P<value>[\w.-]*\w))?(?![\w.]*\w)"
                text = re.sub(pattern, partial(_as_flag, flag=flag, key=str(keys[-1])), text)
        return text

    def _origin(self) -> tuple[str, int]:
        """Where the value, or else the nearest mapping around it, was written; and how many keys lead to that."""
        for length in range(len(self.keys), -1, -1):
            origin = self.origins.get(self.keys[:length])
            if origin is not None:
                return origin, length
        return "", 0


def is_flag(origin: str) -> bool:
    """Whether a value comes from the command line: `--scheme`, `MODEL`."""
    return origin.startswith("-") or origin.isupper()


def _as_flag(found: re.Match[str], *, flag: str, key: str) -> str:
    value, verb = found["value"], "give " if found["set"] else ""
    switch = flag == f"--{value}-{key}"  # which says its value itself: `--skip-indivisible`
    return f"{verb}{flag}" if switch or value is None else f"{verb}{flag} {value}"


def problems_of(
    error: ValidationError, model: type[BaseModel], place: Place, *, also_known: Iterable[str] = ()
) -> list[str]:
    """One line per problem that pydantic found in a mapping read as `model`.

    Args:
        place: of the mapping.
        also_known: keys that are allowed beside `model`'s own, named among the known ones.
    """
    lines = []
    for problem in error.errors(include_url=False):
        keys = tuple(key for key in problem["loc"] if isinstance(key, int) or not key.startswith(("list[", "tuple[")))
        lines.append((place.at(*keys).line, _line(problem, keys, model, place, tuple(also_known))))
    return list(dict.fromkeys(text for _, text in sorted(lines, key=lambda line: line[0])))


def unknown_key(key: str, known: Iterable[str], place: Place, *, inside: str = "") -> str:
    """The line that says that `key` is not known at `place`."""
    names = sorted(known)
    near = nearest(key, names)
    ending = f"Did you mean '{near}'?" if near else f"Known: {', '.join(names) or 'none'}."
    return f"{place}: '{key}' is not a key{f' of {inside}' if inside else ''}. {ending}"


def _line(problem: Any, keys: KeyPath, model: type[BaseModel], place: Place, also_known: tuple[str, ...]) -> str:
    kind, given, limits = problem["type"], problem["input"], problem.get("ctx", {})
    here = place.at(*keys)
    if kind == "extra_forbidden":
        owner = model_at(model, keys[:-1])
        known = {*(owner.model_fields if owner else ()), *(also_known if len(keys) == 1 else ())}
        return unknown_key(str(keys[-1]), known, here, inside=place.at(*keys[:-1]).dotted)
    if kind == "missing":
        near = nearest(str(keys[-1]), _unknown_keys(given, model_at(model, keys[:-1])))
        return f"{here}: is missing.{f' Did you mean it by {near!r}?' if near else ''}"
    if kind == "literal_error":
        expected = limits["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        near = nearest(str(given), expected)
        return f"{here}: {given!r} is not one of {', '.join(expected)}.{f' Did you mean {near!r}?' if near else ''}"
    if kind == "value_error":
        return f"{here}: {limits['error']}"
    if kind in IS_NOT:
        return f"{here}: {_is_not(given, IS_NOT[kind], model_at(model, keys), str(keys[-1]) if keys else '')}"
    if kind in BOUNDS:
        return f"{here}: {_shown(given)}: has to be {BOUNDS[kind].format(**limits)}."
    return f"{here}: {_shown(given)}: {problem['msg'][:1].lower()}{problem['msg'][1:]}."


def _is_not(given: Any, wanted: str, owner: type[BaseModel] | None, key: str) -> str:
    """What a value is, and what it should have been: a mapping of `owner`, or a list of such."""
    named = str(getattr(owner, "named_by", ""))
    if wanted == "a list" and isinstance(given, Mapping) and named:
        return f"a mapping stands where a list of them belongs; write `{key}: [{{{named}: ...}}]`."
    if wanted == "a mapping" and named:
        return f"{_shown(given)} is neither {'an' if named[0] in 'aeiou' else 'a'} {named} nor a mapping."
    return f"{_shown(given)} is not {wanted}."


def _unknown_keys(given: Any, owner: type[BaseModel] | None) -> Iterator[str]:
    if isinstance(given, Mapping) and owner is not None:
        yield from (str(key) for key in given if key not in owner.model_fields)


def _shown(value: Any) -> str:
    """A value in a recipe's words, cut off where it is long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def model_at(model: type[BaseModel], keys: KeyPath) -> type[BaseModel] | None:
    """The pydantic model of the mapping that `keys` lead to, or None when it is not a mapping of fixed keys."""
    current: Any = model
    for key in keys:
        if isinstance(key, int):
            continue
        field_info = current.model_fields.get(key) if current is not None else None
        current = _model_in(field_info.annotation) if field_info else None
    return current


def models_in(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and those of all mappings inside it, each once; also of such as are named by the recipe's author."""
    found = [model]
    for known in found:
        inner = (_model_in(info.annotation, LISTED | {dict}) for info in known.model_fields.values())
        found += [each for each in dict.fromkeys(inner) if each is not None and each not in found]
    return found


def is_list(annotation: Any) -> bool:
    """Whether a field holds a list of mappings: `tuple[TrainKeys, ...]`."""
    return get_origin(annotation) in (tuple, list)


LISTED = frozenset({Union, types.UnionType, list, tuple})


def _model_in(annotation: Any, containers: frozenset[Any] = LISTED) -> type[BaseModel] | None:
    """The first pydantic model inside an annotation such as `tuple[TrainKeys, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in containers:
        for inner in get_args(annotation):
            found = _model_in(inner, containers)
            if found is not None:
                return found
    return None
