"""YAML with the line of every value, by the core rules of YAML 1.2: `1e-5` is a number, `yes` and `no` are strings.

Merge keys are those of YAML 1.1, which every editor knows: `<<: *other`, or a list of such, of which earlier ones win.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import RecipeError
from .problems import KeyPath

DEEPEST = 16
"""Levels of nesting; a recipe has five or six."""


class _Loader(yaml.SafeLoader):
    """Resolves null, bool, int and float as YAML 1.2's core schema does; every other plain scalar is a string."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - pyyaml's own class attribute


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value.replace(".inf", "inf")))


TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
"""What a value may be said to be; others make objects."""

MOST_VALUES = 20_000
"""Values in a document, those behind aliases counted wherever they are used; a recipe has a hundred."""


MERGE = "<<"
"""The key whose mappings stand in where a mapping has no key of its own."""

NO_TEXT = "a zero, or half a surrogate pair"


def is_text(value: str) -> bool:
    """Whether this can be a name or a path: YAML's escapes can say what neither can hold."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


@dataclass
class _Reading:
    """One walk over a document's nodes."""

    name: str
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    values: int = 0

    def value(self, node: yaml.Node, keys: KeyPath) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:  # aliases of aliases of lists grow without bound in a file of a few lines
            if self.values == MOST_VALUES + 1:
                self.problems.append(f"{self._line(node)}: more than {MOST_VALUES} values, aliases included.")
            return None
        if len(keys) > DEEPEST:  # an anchor that contains itself would never end
            self.problems.append(f"{self._line(node)}: nested deeper than {DEEPEST} levels.")
            return None
        if node.tag not in TAGS:
            self.problems.append(f"{self._line(node)}: the tag {node.tag!r} is not taken here.")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.origins[*keys, index] = self._line(item)
            return [self.value(item, (*keys, index)) for index, item in enumerate(node.value)]
        if not is_text(node.value):
            self.problems.append(f"{self._line(node)}: {node.value!a:.60} holds what is no text: {NO_TEXT}.")
            return None
        try:
            return _Loader("").construct_object(node)
        except (
            yaml.YAMLError,
            ValueError,
            TypeError,
            KeyError,
        ) as error:  # the latter of values that their tag does not fit
            self.problems.append(f"{self._line(node)}: {getattr(error, 'problem', None) or error}.")
            return None

    def _mapping(self, node: yaml.MappingNode, keys: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in self._pairs(node, 0):
            key = str(key_node.value)
            if not is_text(key):
                self.problems.append(f"{self._line(key_node)}: {key!a:.60} holds what is no text: {NO_TEXT}.")
                continue
            inside = (*keys, key)
            if key in result:
                first = self.origins[inside]
                dotted = ".".join(map(str, inside))
                self.problems.append(f"{self._line(key_node)} {dotted}: is written twice; first at {first}.")
            self.origins[inside] = self._line(key_node)
            result[key] = self.value(value_node, inside)
        return result

    def _pairs(self, node: yaml.MappingNode, depth: int) -> list[tuple[yaml.Node, yaml.Node]]:
        """Keys and values of a mapping: first what it merges, where it has no such key itself, then its own."""
        own = [pair for pair in node.value if not _merges(pair[0])]
        known = {str(key.value) for key, _ in own}
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for key, value in node.value:
            if not _merges(key):
                continue
            for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                self.values += 1  # counted, since merged mappings may merge others without bound
                if depth > DEEPEST or self.values > MOST_VALUES:
                    self.problems.append(f"{self._line(key)}: merges too many mappings, or itself.")
                    return own
                if not isinstance(other, yaml.MappingNode):
                    self.problems.append(f"{self._line(key)}: '{MERGE}' takes a mapping, or a list of such: <<: *name.")
                    continue
                for pair in self._pairs(other, depth + 1):
                    if str(pair[0].value) not in known:
                        known.add(str(pair[0].value))
                        merged.append(pair)
        return [*merged, *own]

    def _line(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


def _merges(key: yaml.Node) -> bool:
    return isinstance(key, yaml.ScalarNode) and key.value == MERGE and key.style is None


def read_yaml(path: Path, name: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The mapping in a file, and for the keys of every value the place it was written at, `name:line`.

    Raises:
        RecipeError: the file cannot be read, is not YAML, is empty, is no mapping, or has a key twice.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        reason = "it is a folder" if path.is_dir() else (error.strerror or str(error)).lower()
        raise RecipeError([f"{name}: cannot be read: {reason}."]) from None
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
        raise RecipeError([f"{name}:{line}: is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8."]) from None
    node = _compose(text, name)
    if node is None:
        raise RecipeError([f"{name}: is empty."])
    reading = _Reading(name, {(): name})
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError([f"{name}:{node.start_mark.line + 1}: expected `key: value` lines here."])
    found = reading.value(node, ())
    if reading.problems:
        raise RecipeError(reading.problems)
    return found, reading.origins


def parse_value(text: str, name: str) -> Any:
    """The value of a YAML fragment such as `1e-5`, `true` or `{method: rtn}`; `name` goes in front of errors."""
    node = _compose(text, name)
    if node is None:
        return None
    reading = _Reading(name)
    value = reading.value(node, ())
    if reading.problems:
        raise RecipeError(reading.problems)
    return value


def given_value(text: str, name: str) -> Any:
    """As `parse_value`, for what stands behind `key=`: nothing at all is a variable of a shell that is not set."""
    if not text.strip():
        raise RecipeError([f"{name}: has no value. Write null where none is meant, '' for a text without letters."])
    return parse_value(text, name)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        if error.problem and "'\\t'" in error.problem:
            raise RecipeError([f"{place}: a tab; YAML is indented with spaces."]) from None
        context = f" {error.context}" if error.context else ""
        raise RecipeError([f"{place}: is not YAML: {error.problem}{context}."]) from None
    except RecursionError:
        raise RecipeError([f"{name}: nested deeper than {DEEPEST} levels."]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError([f"{name}: is not YAML: {' '.join(str(error).split())}."]) from None
