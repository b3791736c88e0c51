"""Fields of a pydantic model as rows of a table: name, type, default and meaning.

For `rqat plugins show` and the reference pages. The meaning of a field is written once, under `Attributes:` in the
docstring of its class.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class FieldRow:
    """One field.

    Attributes:
        default: as Python writes it; empty where the field is required.
        meaning: empty where the docstring says nothing.
    """

    name: str
    type: str
    default: str
    meaning: str


def field_rows(model: type[BaseModel]) -> list[FieldRow]:
    """All fields of a model, those it inherits included, in the order they were declared."""
    meanings: dict[str, str] = {}
    for ancestor in reversed(model.__mro__):
        if issubclass(ancestor, BaseModel) and ancestor is not BaseModel:
            meanings |= attributes_of(ancestor.__doc__ or "")
    return [
        FieldRow(name, _type(info), _default(info), meanings.get(name, "")) for name, info in model.model_fields.items()
    ]


def attributes_of(docstring: str) -> dict[str, str]:
    """The entries `name: meaning` of a docstring's section `Attributes:`."""
    section = inspect.cleandoc(docstring).partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    current = ""
    for line in section.splitlines():
        if entry := re.match(r" {4}(\w+): (.*)", line):
            current = entry[1]
            found[current] = entry[2]
        elif current and line.startswith("        "):
            found[current] += " " + line.strip()
        elif line.strip():
            break
    return found


def _type(info: FieldInfo) -> str:
    annotation = info.annotation
    text = annotation.__name__ if type(annotation) is type else str(annotation)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def _default(info: FieldInfo) -> str:
    return "" if info.is_required() else repr(info.get_default(call_default_factory=True))
