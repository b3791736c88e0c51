"""The plan that `rqat traces` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...keys import DataKeys, ModelKeys
from ...plan import Plan, build_plan
from ...problems import KeyPath, Place
from ...recipe import built_recipe
from ...registry import Registry
from ...stage import Making
from . import Produce


def produce_plan(registry: Registry, model: ModelKeys, source: DataKeys, flags: Mapping[KeyPath, str]) -> Plan:
    """One step: what a source that asks for the model writes with it, and before it those that it reads itself.

    Args:
        flags: what the command calls each of the source's values in its messages.
    """

    def add(making: Making) -> None:
        place = Place({(): "rqat traces", **flags})
        Produce().add_before(making, source, place, making.use("source", source, place))

    data: dict[str, Any] = {"name": source.source, "model": model.model_dump(), "quantize": None, "export": None}
    return build_plan(built_recipe(data, {("model",): "MODEL"}), registry, add)
