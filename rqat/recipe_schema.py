"""The JSON schema of a recipe file, for editors that check YAML while it is typed and say what a key means."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from .cards import Card
from .describe import field_rows
from .problems import is_list, models_in
from .recipe import Recipe
from .registry import Registry
from .shorthand import follows, named_by


def json_schema(registry: Registry | None = None) -> dict[str, Any]:
    """JSON schema of a recipe file with the options of every known plugin, for editors."""
    registry = registry or Registry.discover()
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    for model in models_in(Recipe):
        _describe(schema if model is Recipe else definitions[model.__name__], model)
    schema["title"] = "rqat recipe"
    schema["properties"]["extends"] = {"type": "string", "description": "A recipe to start from: a name or a file."}
    schema["required"] = []  # a recipe that extends another leaves out what that one has
    for name, info in Recipe.model_fields.items():
        if is_list(info.annotation):  # `train: {kd: {...}}` changes one entry of an inherited list
            inside = schema["properties"][name]
            about = {key: inside.pop(key) for key in ("description", "default") if key in inside}
            schema["properties"][name] = {"anyOf": [inside, {"type": "object"}, {"type": "string"}], **about}
    for model in models_in(Recipe):
        key, kinds = named_by(model), getattr(model, "kinds", ())
        if key:
            mapping = definitions[model.__name__]
            cards = registry.cards(kinds[0]) if kinds else []
            if kinds:
                mapping["properties"][key]["examples"] = [card.name for card in cards]
                mapping["allOf"] = [_when_named(key, card, definitions) for card in cards]
            mapping["required"] = [name for name in mapping.get("required", ()) if name == key and not kinds]
            definitions[model.__name__] = {"anyOf": [{"type": "string"}, mapping]}
            if follows(model):  # the parts in front of it, then itself
                entry = {"anyOf": [{"type": "string"}, {"type": "object"}]}
                definitions[model.__name__]["anyOf"].append({"type": "array", "items": entry})
        if getattr(model, "number_for", ""):
            spelled = definitions[model.__name__]
            definitions[model.__name__] = {"anyOf": [{"type": "number"}, *spelled.get("anyOf", [spelled])]}
    return schema


def _when_named(key: str, card: Card, definitions: dict[str, Any]) -> dict[str, Any]:
    """`if` the mapping names this plugin, `then` these are its options."""
    options = card.options.model_json_schema()
    _describe(options, card.options)
    definitions.update(options.get("$defs", {}))
    then = {name: options[name] for name in ("properties", "required") if name in options}
    return {"if": {"properties": {key: {"const": card.name}}, "required": [key]}, "then": then}


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Says of every key what its class's docstring says of it, and what follows without it."""
    for row in field_rows(model):
        if row.meaning:
            schema["properties"][row.name]["description"] = row.meaning
