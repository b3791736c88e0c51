"""Numbers in another notation: with their base, as a ratio, as a time of day."""

from __future__ import annotations

import re

from .finding import SAME, Finding
from .notation import unwrapped
from .quantities import number

_BASED = re.compile(
    r"([0-9][0-9A-Za-z]*|[A-Z][0-9A-Z]*)\s*(?:_\s*\{?\s*(?:base\s*)?([0-9]+|[a-z]+)\s*\}?|\(?\s*(?:in\s+)?base\s*(?:-|~)?\s*([0-9]+|[a-z]+)\s*\)?)"
)
_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_BASE_NAMES = {word: base for base, word in enumerate(_WORDS, 2)}
_BASE_NAMES |= {"sixteen": 16}


def same_ratio(found: str, right: str) -> Finding | None:
    """Times of day as they are written; ratios as fractions: `6:8` is `3/4`."""
    colons = [re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text) for text in (found, right)]
    if not any(colons):
        return None
    if all(colons) and (len(colons[1][2]) == 2 and len(colons[1][1]) < 3):  # type: ignore[index]
        times = [(int(each[1]), each[2]) for each in colons if each]
        return SAME if times[0] == times[1] else Finding("wrong", "another time or ratio")
    values = [
        number(f"{each[1]}/{each[2]}") if each else number(text)
        for each, text in zip(colons, (found, right), strict=True)
    ]
    if None in values:
        return Finding("wrong", "a ratio and something else")
    return SAME if values[0] == values[1] else Finding("wrong", "another ratio")


def _based(text: str) -> tuple[str, int] | None:
    """Digits and base of a number written with its base, such as `4210_{5}` or `101 base 2`."""
    found = _BASED.fullmatch(unwrapped(text).strip())
    if found is None:
        return None
    written = found[2] or found[3]
    base = int(written[:3]) if written.isdecimal() else _BASE_NAMES.get(written, 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in found[1]):
        return None
    return found[1].upper().lstrip("0") or "0", base


def in_bases(found: str, right: str) -> Finding | None:
    """Numbers with a base: the right answer's base holds where the found one names none."""
    left, gold = _based(found), _based(right)
    if left and gold:
        if left == gold:
            return SAME
        return Finding("wrong", "another base" if left[1] != gold[1] else "different digits")
    if gold:
        digits = unwrapped(found).replace(" ", "").upper().lstrip("0") or "0"
        return SAME if digits == gold[0] else Finding("wrong", "different digits")
    if left:
        if left[1] == 10 and number(left[0]) == number(right):
            return SAME
        if number(right) is not None:
            return Finding("wrong", "in a base that is not asked for")
    return None
