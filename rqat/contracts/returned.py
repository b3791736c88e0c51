"""What a plugin's methods give back is what the contract says, or one line that names the method.

Python lets a grader return True where the contract says "correct", and True would count as a wrong answer without a
word, in every evaluation and in every reward. So the base classes hold what derives from them to its word.
"""

from __future__ import annotations

import inspect
import json
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, Literal, get_args

from ..errors import PluginError
from ..scheme import Scheme

TEXTS = ("text", "prompt", "completion", "answer", "system", "place")
"""Fields of a row that are text."""

Level = Literal["error", "warning", "note"]
"""What an `rqat.Problem` may be."""

OWN = __name__.rpartition(".")[0]
HELD = "__held__"


def held_to(owner: type, checks: Mapping[str, Callable[[str, Any], Any]]) -> None:
    """Has what the methods of a class return go through checks, each of which is told whose it is.

    Those of a class beside it as well, of which it inherits; what the contract's own classes return is right.
    """
    for name, check in checks.items():
        method = inspect.getattr_static(owner, name, None)
        kind = type(method) if isinstance(method, staticmethod | classmethod) else None
        function = method.__func__ if isinstance(method, staticmethod | classmethod) else method
        if inspect.isfunction(function) and not hasattr(function, HELD) and not function.__module__.startswith(OWN):
            held = _held(function, check)
            setattr(owner, name, held if kind is None else kind(held))


def _held(function: Callable[..., Any], check: Callable[[str, Any], Any]) -> Callable[..., Any]:
    who = f"{function.__module__}.{function.__qualname__}"

    @wraps(function)
    def held(*given: Any, **named: Any) -> Any:
        return check(who, function(*given, **named))

    setattr(held, HELD, True)
    return held


def rows(who: str, given: Any) -> Iterator[Any]:
    """Rows of a source, one by one: mappings whose fields are text; a field that is None is none."""
    return (_row(who, number, row) for number, row in enumerate(_several(who, given, "rows"), start=1))


def problems(who: str, given: Any) -> list[Any]:
    """Rows of a task, all of them: each has something to ask, and an answer for the grader."""
    found = [_mapping(who, number, row) for number, row in enumerate(_several(who, given, "problems"), start=1)]
    for number, row in enumerate(found, start=1):
        if not (row.get("prompt") or row.get("messages")) or row.get("answer") is None:
            lacks = "answer" if row.get("prompt") or row.get("messages") else "prompt"
            raise PluginError(f"{who}: row {number} has no {lacks}.", hint="A problem is a row with prompt and answer.")
    return found


def verdict(who: str, given: Any) -> Any:
    """One of three words."""
    if isinstance(given, str) and given in ("correct", "wrong", "unverifiable"):
        return given
    raise PluginError(f"{who} returned {given!r}.", hint='Return "correct", "wrong" or "unverifiable".')


def layers(who: str, given: Any) -> Mapping[str, Any]:
    """Layers of a block, by their names inside it; what they are is looked at with the block."""
    if isinstance(given, Mapping):
        return given
    raise PluginError(f"{who} returned {_shown(given)}.", hint="Return a dict: rqat.QuantizedWeight by layer.")


def tensors(who: str, given: Any) -> Mapping[str, Any]:
    """Tensors by their names in a file."""
    if isinstance(given, Mapping) and all(map(_is_tensor, given.values())):
        return given
    wrong = (
        next((one for one in given.items() if not _is_tensor(one[1])), given) if isinstance(given, Mapping) else given
    )
    raise PluginError(f"{who} returned {_shown(wrong)}.", hint="Return a dict: torch tensors by their full names.")


def tensor(who: str, given: Any) -> Any:
    """One tensor."""
    if _is_tensor(given):
        return given
    raise PluginError(f"{who} returned {_shown(given)}.", hint="Return a torch tensor.")


def decoded(who: str, given: Any) -> Any:
    """One quantized layer."""
    if hasattr(given, "codes") and hasattr(given, "scale"):
        return given
    raise PluginError(f"{who} returned {_shown(given)}.", hint="Return an rqat.QuantizedWeight.")


def settings(who: str, given: Any) -> Any:
    """What a JSON file can hold, or None; schemes as they are spelled."""
    if given is None:
        return None
    try:
        return json.loads(json.dumps(dict(given), default=_spelled))
    except (TypeError, ValueError) as error:
        hint = "Return what JSON knows: a dict of text, numbers, lists and dicts; or None."
        raise PluginError(f"{who} returned {_shown(given)}: {error}.", hint=hint) from None


def _spelled(value: Any) -> str:
    if isinstance(value, Scheme):
        return str(value)
    raise TypeError(f"{_shown(value)} is nothing that JSON knows")


def _is_tensor(value: Any) -> bool:
    """Known without torch, which takes seconds to import."""
    return hasattr(value, "detach") and hasattr(value, "dtype")


def compared(who: str, given: Any) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Figures of a comparison and those of every row, as numbers that a file can hold."""
    try:
        figures, per_row = given
        found = _numbers(figures), [_numbers(row) for row in per_row]
    except (TypeError, ValueError, AttributeError):
        hint = "Return a mapping of numbers, and a list with one for every row."
        raise PluginError(f"{who} returned {_shown(given)}.", hint=hint) from None
    if not all("tokens" in row for row in found[1]):
        raise PluginError(f"{who}: the figures of a row lack `tokens`.", hint="Say how many tokens of it count.")
    return found


def told(who: str, given: Any) -> list[Any]:
    """Problems to be told: several, one, or none at all."""
    found = [] if given is None else [given] if hasattr(given, "level") else list(_several(who, given, "rqat.Problem"))
    for one in found:
        if not hasattr(one, "level"):
            raise PluginError(f"{who}: {one!r} is no rqat.Problem.", hint="Say rqat.Problem(text, hint, key).")
        levels = get_args(Level)
        if one.level not in levels or not (isinstance(one.text, str) and one.text):
            wrong = f"level={one.level!r}" if one.level not in levels else f"text={one.text!r}"
            hint = f"A level is one of {', '.join(levels)}; a text says what is wrong."
            raise PluginError(f"{who}: an rqat.Problem has {wrong}.", hint=hint)
    return found


def bits(who: str, given: Any) -> float | None:
    """Bits per weight of a file, or None."""
    if given is None or (_is_number(given) and 0 < given < math.inf):
        return given
    raise PluginError(f"{who} returned {_shown(given)}.", hint="Return bits per weight, a number above 0; or None.")


def count(who: str, given: Any) -> int:
    """Bytes of a file, as a whole number."""
    if _is_number(given) and 0 <= given < math.inf:
        return math.ceil(given)
    raise PluginError(f"{who} returned {_shown(given)}.", hint="Return a number of bytes, 0 or more.")


def names(who: str, given: Any) -> tuple[str, ...]:
    """Names, or none at all."""
    return () if given is None else tuple(_several(who, given, "names"))


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """A whole number stays one; a tensor of one becomes one."""
    return {name: value if isinstance(value, int) else float(value) for name, value in figures.items()}


def _is_number(value: Any) -> bool:
    """Also of numpy; True is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _several(who: str, given: Any, what: str) -> Iterable[Any]:
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
        raise PluginError(f"{who} returned {_shown(given)}.", hint=f"Return or yield {what}.")
    return given


def _mapping(who: str, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise PluginError(f"{who}: row {number} is {_shown(row)}.", hint='A row is a dict, as {"prompt": "..."}.')
    return row if isinstance(row, dict) else dict(row)


def _row(who: str, number: int, row: Any) -> dict[str, Any]:
    """A row whose fields are of their types. Fields that only a plugin knows are its own affair."""
    found = {name: value for name, value in _mapping(who, number, row).items() if value is not None}
    for name in TEXTS:
        if not isinstance(found.get(name, ""), str):
            raise PluginError(
                f"{who}: row {number} has {_shown(found[name])} as its {name}, which is no text.",
                hint=f"Yield text, as str(...) makes it of a number, or leave {name} out.",
            )
    turns = found.get("messages", ())
    if isinstance(turns, str) or not all(
        isinstance(turn, Mapping) and {"role", "content"} <= {*turn} for turn in turns
    ):
        raise PluginError(
            f"{who}: row {number} has {_shown(turns)} as its messages.",
            hint='Messages are a list of {"role": "user", "content": "..."}.',
        )
    return found


def _shown(given: Any) -> str:
    """A value for a message, cut off where it is long."""
    text = " ".join(repr(given).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
