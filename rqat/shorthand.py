"""What a recipe may write for short, spelled out: a name in place of a mapping, and parts that stand one after another.

quantize: gptq                  {method: gptq}
train: kd                       [{objective: kd}]
train: -grpo                    {grpo: null}, which drops an entry of an inherited list
train: null                     [], which drops them all
budget: 2.8                     {size: 2.8}
quantize: [rotate, gptq]        {transforms: [{method: rotate}], method: gptq}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from .problems import KeyPath, Place, is_list, model_at


def spell_out(data: dict[str, Any], model: type[BaseModel], origins: dict[KeyPath, str], keys: KeyPath = ()) -> None:
    """Spells out a mapping in place, at any depth; `origins` says where values were written and moves with them.

    Args:
        model: what the mapping is read as.
        keys: that lead to it from the top.
    """
    for key, info in model.model_fields.items():
        inner = model_at(model, (key,))
        if key in data and data[key] is None and is_list(info.annotation):
            data[key] = []  # null leaves a section out
        if key not in data or inner is None:
            continue
        here = (*keys, key)
        if is_list(info.annotation) and (names := dropped(data[key])):
            data[key] = dict.fromkeys(names)
        elif not is_list(info.annotation):
            data[key] = _spelled(data[key], inner, origins, here)
        elif isinstance(data[key], list):
            data[key] = [_spelled(entry, inner, origins, (*here, n)) for n, entry in enumerate(data[key])]
        elif isinstance(data[key], str):
            data[key] = [_spelled(data[key], inner, origins, here)]
        elif isinstance(data[key], dict):  # `train: {kd: {...}}` changes one entry of an inherited list
            data[key] = {name: _spelled(entry, inner, origins, (*here, name)) for name, entry in data[key].items()}


def dropped(value: Any) -> list[str]:
    """The names behind the minus signs of `-grpo`, or of `[-kd, -grpo]`; none where that is not all there is."""
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    minus = [isinstance(name, str) and len(name) > 1 and name.startswith("-") for name in names]
    return [name[1:] for name in names] if minus and all(minus) else []


def strays(data: dict[str, Any], model: type[BaseModel], place: Place) -> Iterator[str]:
    """The lines that say of `grpo: null` beside `train` that it belongs under it."""
    for key in data.keys() - model.model_fields.keys():
        name = str(key).removeprefix("-")
        for section, info in model.model_fields.items():
            own, entries = named_by(model_at(model, (section,))), data.get(section)
            if not (is_list(info.annotation) and isinstance(entries, list)):
                continue
            if any(isinstance(entry, dict) and entry.get(own) == name for entry in entries):
                yield (
                    f"{place.at(key)}: stands under '{section}': `{section}: {{{name}: null}}` drops it, "
                    f"`{section}: {{{name}: {{lr: 1e-5}}}}` changes a key of it."
                )


def named_by(model: type[BaseModel] | None) -> str:
    """The key that names what a mapping is about; "" where it is about many things."""
    return str(getattr(model, "named_by", ""))


def follows(model: type[BaseModel] | None) -> str:
    """The key of a mapping for the parts that stand in front of the one it names; "" where none may."""
    return str(getattr(model, "follows", ""))


def _spelled(value: Any, model: type[BaseModel], origins: dict[KeyPath, str], keys: KeyPath) -> Any:
    """A value that should be a mapping, as one."""
    name, front = named_by(model), follows(model)
    number = getattr(model, "number_for", "")
    if number and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = {number: value}
    elif name and isinstance(value, str):
        value = {name: value, **({front: []} if front else {})}
    elif front and isinstance(value, list):
        value = _one_after_another(value, name, front, origins, keys)
    if isinstance(value, dict):
        spell_out(value, model, origins, keys)
    return value


def _one_after_another(
    entries: list[Any], name: str, front: str, origins: dict[KeyPath, str], keys: KeyPath
) -> dict[str, Any]:
    """`[a, b, c]` as the mapping of `c`, with `[a, b]` in front of it."""
    *before, last = entries or [{}]
    own = last if isinstance(last, dict) else {name: last}
    place = len(before)
    moved = {path: origins.pop(path) for path in list(origins) if path[: len(keys)] == keys and len(path) > len(keys)}
    for path, origin in moved.items():
        index, *inside = path[len(keys) :]
        if index != place:
            origins[*keys, front, index, *inside] = origin
        elif inside or own is not last:
            origins[*keys, *(inside or [name])] = origin
    return {**own, front: before}
