"""A recipe with every default filled in: the recipe's own, and those of the plugins it names."""

from __future__ import annotations

from typing import Any

from .contracts.options import parts_of, starts_of
from .plan import Plan
from .problems import KeyPath
from .stage import Use


def filled(plan: Plan) -> dict[str, Any]:
    """What a plan was made from, as YAML may hold it: read again, it makes the same plan.

    `trust_remote_code` and commands are left out, which no recipe can set. Paths are as they were written: relative
    ones start from the folder that the command was given in.
    """
    recipe: dict[str, Any] = plan.recipe.model_dump(mode="json")
    for step in plan.steps:
        for use in step.parts.values():
            for each in use.all():
                _fill(recipe, each.place.keys, each)
    return _without_trust(recipe)


def options_of(use: Use) -> dict[str, Any]:
    """Every option of a part, and of the parts that it is made of, as JSON."""
    found: dict[str, Any] = use.options.model_dump(mode="json")
    for (name, index, _), (inner, _) in zip(parts_of(use.options), use.sources, strict=False):
        found[name][index] |= options_of(inner)
    starts = [inner for inner, _ in use.parts if inner.card.kind == "quantizer"]
    for (name, _), inner in zip(starts_of(use.options), starts, strict=False):
        found[name] |= options_of(inner)
    return found


def _fill(recipe: Any, keys: KeyPath, use: Use) -> None:
    """Adds a part's options where it is named; one that is named in a word only has no place for them."""
    found = recipe
    for key in keys:
        inside = isinstance(found, dict) and key in found
        listed = isinstance(found, list) and isinstance(key, int) and key < len(found)
        if not (inside or listed):
            return
        found = found[key]
    # A task of lm-eval's own takes what is said for a change of its own settings.
    if keys and use.card.load and isinstance(found, dict) and use.card.name in found.values():
        for name, value in options_of(use).items():
            found.setdefault(name, value)
        for name in use.commands:
            del found[name]


def _without_trust(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_trust(inner) for key, inner in value.items() if key != "trust_remote_code"}
    return [_without_trust(inner) for inner in value] if isinstance(value, list) else value
