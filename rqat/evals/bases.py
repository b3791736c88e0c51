"""Numbers in another notation: with their base, as a ratio, as a time of day, as a date."""

from __future__ import annotations

import re

from .finding import SAME, Finding
from .notation import unwrapped
from .quantities import number

_BASED = re.compile(
    r"\(?([0-9][0-9A-Za-z]*|[A-Z][0-9A-Z]*)\)?\s*(?:_\s*\{?\s*(?:base\s*)?([0-9]+|[a-z]+)\s*\}?|\(?\s*(?:in\s+)?base\s*(?:-|~)?\s*([0-9]+|[a-z]+)\s*\)?)"
)
_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_BASE_NAMES = {word: base for base, word in enumerate(_WORDS, 2)}
_BASE_NAMES |= {"sixteen": 16}


_TIME = re.compile(r"(\d{1,2})(?::(\d{2})(?::(\d{2}))?)?\s*([AP]M)?", re.IGNORECASE)
_DAYTIMES = {"noon": "12:00 PM", "12noon": "12:00 PM", "midnight": "12:00 AM", "12midnight": "12:00 AM"}
_HALF_DAY = 12 * 3600
_DATES = (re.compile(r"\d+(?:\s*-\s*\d+)+"), re.compile(r"\d{1,2}/\d{1,2}/\d{2,4}|\d{4}/\d{1,2}/\d{1,2}"))


def _time(text: str) -> tuple[int, str] | None:
    """Seconds since midnight as they are written, and AM, PM or ""; None for what is no time of day."""
    plain = unwrapped(text).strip()
    plain = re.sub(r"\s*o'clock$", ":00" if plain[:2].strip().isdigit() and ":" not in plain else "", plain)
    found = _TIME.fullmatch(_DAYTIMES.get(re.sub(r"\s", "", plain).lower(), plain))
    if found is None or not (found[2] or found[4]):
        return None
    hours, minutes, seconds, half = int(found[1]), int(found[2] or 0), int(found[3] or 0), (found[4] or "").upper()
    if minutes > 59 or seconds > 59 or hours > 24 or (half and not 1 <= hours <= 12):
        return None
    return 3600 * (hours % 12 + 12 * (half == "PM") if half else hours) + 60 * minutes + seconds, half


def same_time(found: str, right: str) -> Finding | None:
    """Of two times of day. Where one does not say which half of the day it means, and may mean either, both count."""
    left, gold = _time(found), _time(right)
    if left is None or gold is None:
        return None
    apart = left[0] - gold[0]
    unsaid = [time for time, half in (left, gold) if not half]
    either = len(unsaid) == 1 and 3600 <= unsaid[0] < 13 * 3600
    equal = apart % _HALF_DAY == 0 if either else apart == 0
    return SAME if equal else Finding("wrong", "another time or ratio")


def same_date(found: str, right: str) -> Finding | None:
    """Dates, scores and ranges, `2024-05-01`, `3-2` and `5/12/2024`: by their parts, and not computed."""
    for pattern in _DATES:
        if all(pattern.fullmatch(text.strip()) for text in (found, right)):
            parts = [[int(part) for part in re.findall(r"\d+", text)] for text in (found, right)]
            return SAME if parts[0] == parts[1] else Finding("wrong", "another date, range or difference")
    return None


def as_ratio(text: str, other: str) -> str:
    """`1 in 6` and `1 out of 6` as `1/6`; `3 to 2` as `3:2` beside a ratio; `2 and 3/4` as `2 3/4` beside a number;
    other texts as they are."""
    plain = unwrapped(text).strip()
    if (found := re.fullmatch(r"(\d+)\s+and\s*(\\frac\s*\{\d+\}\s*\{\d+\}|\d+/\d+)", plain)) and number(
        other
    ) is not None:
        return f"{found[1]} {found[2]}"
    if found := re.fullmatch(r"(\d+)\s+(?:in|out\s+of)\s+(?:every\s+)?(\d+)", plain):
        return f"{found[1]}/{found[2]}"
    found = re.fullmatch(r"(\d+)\s+to\s+(\d+)", plain)
    return f"{found[1]}:{found[2]}" if found and re.fullmatch(r"\s*\d+\s*:\s*\d+\s*", other) else text


def same_ratio(found: str, right: str) -> Finding | None:
    """Ratios as fractions: `6:8` is `3/4`, and `2:4:6` is `1:2:3`."""
    several = [re.fullmatch(r"\s*\d+(?:\s*:\s*\d+){2,}\s*", text) for text in (found, right)]
    if all(several):
        parts = [[int(part) for part in text.split(":")] for text in (found, right)]
        alike = len(parts[0]) == len(parts[1]) and 0 not in (parts[0][0], parts[1][0])
        cross = zip(*parts, strict=False)
        same = alike and all(one * parts[1][0] == other * parts[0][0] for one, other in cross)
        return SAME if same else Finding("wrong", "another ratio")
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
