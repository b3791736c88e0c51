"""Numbers in words: `seven`, `one hundred and five`, `minus two`, `two thirds`, `two and a half`."""

from __future__ import annotations

import re
from fractions import Fraction

_TO_TWELVE = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_ONES = {word: value for value, word in enumerate((*_TO_TWELVE, *_TEENS))}
_BY_TEN = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TENS = {word: 10 * value for value, word in enumerate(_BY_TEN, 2)}
_POWERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2,
    "halve": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
}
_PARTS |= {"ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "hundredth": 100, "thousandth": 1000}
_LONGEST = 120
"""Characters of a number in words."""


def number_word(text: str) -> Fraction | None:
    """The value of a number that is written in words and in nothing else, or None.

    A single part needs its count, `a third` or `one third`: `third` alone is a place in an order. `half` is 1/2.
    """
    if len(text) > _LONGEST:
        return None
    words = re.sub(r"[\s\-]+", " ", text).strip().casefold().split(" ")
    sign = 1
    if words[0] in ("minus", "negative"):
        sign, words = -1, words[1:]
    value = _unsigned(words)
    return None if value is None else sign * value


def _unsigned(words: list[str]) -> Fraction | None:
    whole = _whole(words)
    if whole is not None:
        return Fraction(whole)
    if "and" in words:  # `two and a half`
        place = len(words) - 1 - words[::-1].index("and")
        first, rest = _whole(words[:place]), _part(words[place + 1 :])
        return first + rest if first is not None and rest is not None and rest < 1 else None
    return _part(words)


def _part(words: list[str]) -> Fraction | None:
    """`two thirds`, `a half`, `half`."""
    if words in (["half"], ["a", "half"]):
        return Fraction(1, 2)
    if len(words) < 2:
        return None
    below = _PARTS.get(words[-1].removesuffix("s"))
    above = 1 if words[:-1] in (["a"], ["an"]) else _whole(words[:-1])
    # `twenty fifth` is a place in an order, and so is `one hundred third`.
    if below is None or above is None or (above > 1) != words[-1].endswith("s"):
        return None
    return Fraction(above, below)


def _whole(words: list[str]) -> int | None:
    """`one hundred and five thousand`."""
    if not words or words[0] == "and" or words[-1] == "and":
        return None
    words = ["one", *words[1:]] if words[0] == "a" and len(words) > 1 else words
    if words[-1] == "dozen":
        many = _whole(words[:-1])
        return None if many is None else 12 * many
    total, group, last = 0, 0, 10**15
    room = 1000
    for word in words:
        if word == "and":
            if room != 100:  # behind a hundred or a thousand only
                return None
            continue
        if word in _ONES:
            value = _ONES[word]
            if value >= room or (value == 0 and len(words) > 1):
                return None
            group, room = group + value, 1
        elif word in _TENS:
            if room < 100:
                return None
            group, room = group + _TENS[word], 10
        elif word == "hundred":
            if not 1 <= group < 20 or room == 100:
                return None
            group, room = group * 100, 100
        elif word in _POWERS:
            if group == 0 or _POWERS[word] >= last:
                return None
            last = _POWERS[word]
            total, group, room = total + group * last, 0, 100
        else:
            return None
    return total + group
