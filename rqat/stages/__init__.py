"""The stages of a run, one room each; found by walking this package, so that nobody needs to know their names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import RecipeError
from ..keys import PluginKeys
from ..problems import Place, models_in, problems_of
from ..stage import Section, Stage


@cache
def stages() -> Mapping[str, Stage]:
    """Every stage by its name, in the order in which they add their steps."""
    found: list[Stage] = []
    for room in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{room.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Stage) and value.__module__ == module.__name__:
                value.name = room.name
                found.append(value())
    return {stage.name: stage for stage in sorted(found, key=lambda stage: stage.order)}


def sections() -> Iterator[Section]:
    """The top-level keys of a recipe that stages bring, in order."""
    for stage in stages().values():
        yield from stage.sections


def keys_of(section: str, values: Mapping[str, Any]) -> Any:
    """The keys of a recipe's section; what the host does not know among `values` are a plugin's options.

    Raises:
        RecipeError: every problem.
    """
    kind = next(each.model for each in sections() if each.key == section)
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise RecipeError(problems_of(error, kind, Place({(): section}))) from None


@cache
def reserved_keys(kind: str) -> frozenset[str]:
    """The recipe's own keys beside which a kind's options stand; no option may be called like one of them."""
    models: list[type[BaseModel]] = [model for section in sections() for model in models_in(section.model)]
    named = [model for model in models if issubclass(model, PluginKeys) and kind in model.kinds]
    return frozenset(key for model in named for key in model.model_fields)


def way(recipe: Any) -> list[str]:
    """What makes the model that a recipe ends with, one after the other: "gptq", "kd", "grpo"."""
    entries = [getattr(recipe, stage.sections[0].key) for stage in stages().values() if stage.makes_model]
    listed = (entry if isinstance(entry, tuple) else (entry,) for entry in entries)
    return [keys.part for each in listed for keys in each if keys is not None]


def work_of(stage: str) -> ModuleType:
    """The module that does a stage's work, with all it needs to do so."""
    return importlib.import_module(f"{__name__}.{stage}.run")
