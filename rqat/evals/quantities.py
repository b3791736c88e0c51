"""Numbers with their units: the exact value of a number however it is written, and what of an answer is its unit.

A number is a `Fraction`, never a float: `0.1` is a tenth, and `1/2004!` is not `1/2006!`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from .notation import DOLLAR, unwrapped
from .units import SINGLE, Unit, single, unit_of

MOST_DIGITS = 4000
"""Of an integer that is computed with; longer ones are compared as text."""

MOST_EXPONENT = 3000
"""Of a power of ten or of an integer that is computed here."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?: \d{3})+|\d+)"
_DECIMAL = re.compile(rf"({_DIGITS})?(?:\.(\d*))?")
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\overline\s*\{(\d+)\}|\\dot\s*\{?(\d)\}?|\((\d+)\))")
_ELLIPSIS = r"\s*(?:\.\.\.|\\l?dots|\\cdots)"
_DOTS = re.compile(rf"(\d*)\.(\d*?)(?:(\d+?)\3{{2,}}|(\d\d)\4){_ELLIPSIS}")
_CUT_OFF = re.compile(rf"([+-]?\s*\d*\.\d+){_ELLIPSIS}")
_POWER_OF_TEN = re.compile(r"(.+?)\s*(?:\\times|\\cdot|\*|x(?=\s*10))\s*10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|([+-]?\d+))")
_FRACTION = re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_MIXED = re.compile(
    rf"({_DIGITS})\s*(?:\\frac\s*\{{\s*(\d+)\s*\}}\s*\{{\s*(\d+)\s*\}}|(?<=\d)[^\S\n]+(\d+)\s*/\s*(\d+))"
)
_POWER = re.compile(r"(\d+)\s*\^\s*(?:\{\s*(-?\d+)\s*\}|(\d))")


def number(text: str) -> Fraction | None:
    """The exact value of a number, or None for anything that has to be computed otherwise.

    Integers and decimals with separators of thousands, fractions, mixed numbers, repeating decimals, scientific
    notation, an integer to the power of one.
    """
    text = unwrapped(text).strip()
    while len(text) > 1 and text[0] == "{" and text[-1] == "}":
        text = text[1:-1].strip()
    if len(text) > MOST_DIGITS:
        return None
    sign = 1
    while text[:1] in ("-", "+"):
        sign, text = (-sign if text[0] == "-" else sign), text[1:].strip()
    value = _unsigned(text) if text[:1] not in ("-", "+") else None
    return None if value is None else sign * value


def _unsigned(text: str) -> Fraction | None:
    if found := _DECIMAL.fullmatch(text):
        whole, decimals = re.sub("[, ]", "", found[1] or ""), found[2] or ""
        return Fraction(int(whole + decimals), 10 ** len(decimals)) if whole + decimals else None
    if found := _MIXED.fullmatch(text):
        above, below = int(found[2] or found[4]), int(found[3] or found[5])
        return int(re.sub("[, ]", "", found[1])) + Fraction(above, below) if above < below else None
    if found := _FRACTION.fullmatch(text):
        return _ratio(found[1], found[2])
    if text.count("/") == 1:
        return _ratio(*text.split("/"))
    if found := _REPEATING.fullmatch(text):
        return _repeating(found[1], found[2], found[3] or found[4] or found[5])
    if found := _DOTS.fullmatch(text):
        return _repeating(found[1], found[2], found[3] or found[4])
    if found := _POWER_OF_TEN.fullmatch(text):
        return _shifted(found[1], found[2] or found[3])
    if found := re.fullmatch(r"10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|(\d+))", text):
        return _shifted("1", found[1] or found[2])
    if found := re.fullmatch(r"([\d.,]+)[eE]([+-]?\d+)", text):
        return _shifted(found[1], found[2])
    if found := _POWER.fullmatch(text):
        base, exponent = int(found[1]), int(found[2] or found[3])
        if abs(exponent) * len(found[1]) > MOST_EXPONENT or (base == 0 and exponent <= 0):
            return None
        return Fraction(base) ** exponent
    return None


def _ratio(above: str, below: str) -> Fraction | None:
    top, bottom = number(above), number(below)
    if top is None or bottom is None or bottom == 0 or not (above.strip() and below.strip()):
        return None
    return top / bottom


def _repeating(whole: str, before: str, period: str) -> Fraction:
    scale = 10 ** len(before)
    return int(whole or 0) + (int(before or 0) + Fraction(int(period), 10 ** len(period) - 1)) / scale


def _shifted(mantissa: str, exponent: str) -> Fraction | None:
    value = number(mantissa)
    if value is None or len(exponent) > 6 or abs(int(exponent)) > MOST_EXPONENT:
        return None
    return value * Fraction(10) ** int(exponent)


def cut_off(text: str) -> str:
    """`3.14159...` as `3.14159`; of six significant digits or more, and no repeating decimal. Others as they are."""
    found = _CUT_OFF.fullmatch(text.strip())
    return found[1] if found and number(text) is None and last_digit(found[1]) is not None else text


def last_digit(text: str) -> Fraction | None:
    """What the last digit counts of a decimal of at least six significant digits: one that may stand for a value that
    no decimal is equal to. None for all others.

    Of 17 or 18 digits, as many as a float64 is printed with, the last are left to its rounding: the sixteenth counts.
    """
    found = re.fullmatch(
        r"[+-]?\s*([\d,]*)\.(\d+)\s*(?:(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{?\s*([+-]?\d{1,3})\s*\}?|[eE]([+-]?\d{1,3}))?",
        text.strip(),
    )
    digits = len((found[1] + found[2]).replace(",", "").lstrip("0")) if found else 0
    if found is None or digits < 6:
        return None
    places = len(found[2]) - int(found[3] or found[4] or 0) - (digits - 16 if 16 < digits < 19 else 0)
    return Fraction(10) ** -places


def same_number(left: Fraction, right: Fraction, left_text: str, right_text: str) -> bool:
    """Equal, or one the decimal of the other, where that has no end: `0.333333` and `1/3`, not `0.333`."""
    if left == right:
        return True
    for value, text, other in ((left, left_text, right), (right, right_text, left)):
        step = last_digit(text)
        if step is not None and _endless(other):
            return is_decimal_of(value, other, step)
    return False


def is_decimal_of(decimal: Fraction, value: Fraction, step: Fraction) -> bool:
    """Whether a decimal whose last digit counts `step` is a value rounded, or cut off behind that digit."""
    beyond = abs(value) - abs(decimal)
    return decimal * value > 0 and -step / 2 <= beyond < step


def improper(text: str) -> bool:
    """Whether it looks like a mixed number whose fraction is one or more, such as `3\\frac{5}{4}`."""
    found = re.fullmatch(r"[+-]?\s*\d+\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", text.strip())
    return found is not None and int(found[1]) >= int(found[2])


def _endless(value: Fraction) -> bool:
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below > 1


_MULTIPLES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}


@dataclass(frozen=True)
class Quantity:
    """An answer that is one value.

    Attributes:
        body: without its unit.
        unit: None where there is none.
        percent: whether a percent sign stood behind it.
    """

    body: str
    unit: Unit | None = None
    percent: bool = False


_MONEY = f"{DOLLAR}€£¥₹"
_CURRENCIES = {"pounds sterling": "gbp"}
_POWERED = r"(?:\s*\^\s*\{?\s*-?[1-4]\s*\}?|[23])?"
_PART_OF = re.compile(
    r"(\d\s*[%}]?)\s*(?:\\text\s*\{\s*)?of\s+(?:the|an?|his|her|their|its|all)\s+[A-Za-z]+(?:\s+[A-Za-z]+)?\s*\}?$"
)
"""`3/8 of the pizza` says 3/8."""

_TEXT_UNIT = re.compile(rf"(?<=[\d}})°!\]a-zA-Z. ])\s*((?:\\text\s*\{{[^{{}}]*\}}{_POWERED}\s*(?:/|\\cdot|\*)?\s*)+)$")
_PLAIN_UNIT = re.compile(rf"(?<![\\A-Za-z])([A-Za-z°][A-Za-z.\-]*{_POWERED}(?:(?: |\s*/\s*)[A-Za-z.\-]+{_POWERED})*)$")


def quantity(text: str, *, right: bool = False) -> Quantity:
    """Value and unit of one answer.

    Args:
        right: it is the right answer, in which a single letter is a variable: `3 m` is `3m`.
    """
    text, money = _money(_PART_OF.sub(r"\1", text.strip()))
    if money and (
        rate := re.fullmatch(r"(.*\d)\s*(?:per\s+|an?\s+|each\s+|/\s*)([A-Za-z]+)", text)
    ):  # `$3.50 per hour`
        return Quantity(rate[1], unit_of(f"{_CURRENCIES.get(money.dimension, money.dimension)} per {rate[2]}") or money)
    if text.endswith("%"):
        return Quantity(text[:-1].strip(), None, True)
    if found := re.search(r"°\s*(?:\\text\s*\{\s*([CFK])\s*\}|([CF])\b)?\s*$", text):
        body = text[: found.start()].strip()
        if body and not re.search(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])", body):
            return Quantity(body, single("°" + (found[1] or found[2] or "")))
    if (found := _TEXT_UNIT.search(text)) and (body := text[: found.start()].strip()):
        unit = unit_of(found[1])
        if unit is not None and re.search(r"[\d\\]", body):
            return Quantity(_multiplied(body), unit)
    if (found := _PLAIN_UNIT.search(text)) and (body := text[: found.start()].rstrip()):
        spaced, word = len(body) < found.start(), found[1]
        unit = unit_of(word)
        exact = number(_multiplied(body)) is not None
        if unit is not None and _counts(word, unit, spaced, exact, right):
            return Quantity(_multiplied(body), unit)
    return Quantity(_multiplied(text), money)


def joined(text: str) -> str:
    """`2 hours and 30 minutes` as `150 minutes`; any other text as it is."""
    parts = re.findall(r"([\d.,/ ]*\d)\s*(?:\\text\s*\{\s*)?([A-Za-z]+)\.?\s*\}?", text)
    plain = re.sub(r"\\text\s*\{\s*(?:,?\s*and\b)?|\}|(?<![A-Za-z])and(?![A-Za-z])|[\s,]", "", text)
    values, units = [number(value) for value, _ in parts], [unit_of(name) for _, name in parts]
    if len(parts) < 2 or plain != "".join(f"{value}{name}".replace(" ", "").replace(",", "") for value, name in parts):
        return text
    known = [unit for unit in units if unit is not None and unit.known]
    dimensions = {unit.dimension for unit in known}
    if (
        None in values
        or len(known) < len(parts)
        or len(dimensions) > 1
        or len({unit.factor for unit in known}) < len(parts)
    ):
        return text
    total = sum((value or 0) * unit.factor for value, unit in zip(values, known, strict=True))
    return f"{total / known[-1].factor} {parts[-1][1]}"


def _counts(word: str, unit: Unit, spaced: bool, exact: bool, right: bool) -> bool:
    """Whether letters behind a value are a unit, and no variable and no word that matters."""
    letters = re.match(r"[A-Za-z]+", word)
    if letters and len(letters[0]) == 1:
        if not unit.known or right or not exact:
            return False
        return (
            (spaced and letters[0] in SINGLE)
            or "/" in word
            or re.fullmatch(r"m\s*\^\s*\{?\s*[23]\s*\}?", word) is not None
        )
    if unit.known:
        return exact or spaced
    # Other words count things: of some length and with a vowel, since `xyz` are variables.
    return (
        exact
        and spaced
        and all(len(each) > 2 and re.search("[aeiou]", each) for each in re.sub(r"\^-?\d+", "", unit.dimension).split())
    )


def _money(text: str) -> tuple[str, Unit | None]:
    """Takes off a currency's sign or name before or behind a number."""
    text = re.sub(rf"\\text\s*\{{\s*([{_MONEY}]|USD|EUR|GBP|INR|Rs\.?)\s*\}}", r"\1", text)
    if found := re.match(rf"([+-]?)\s*(?:US|USD|AUD|CAD)?\s*([{_MONEY}])\s*", text):
        rest = found[1] + text[found.end() :]
        # `$5 million`, and `$50 dollars`, which says it twice.
        return re.sub(r"\s*(?:\\text\s*\{\s*dollars?\s*\}|dollars?|USD)$", "", rest), single(found[2])
    if found := re.match(r"(USD|EUR|GBP|INR|Rs\.?)\s*(?=[\d.])", text):
        return text[found.end() :], single(found[1].rstrip(".").lower())
    if text[-1:] and text[-1] in _MONEY + "¢":
        return text[:-1].strip(), single(text[-1])
    return text, None


def _multiplied(text: str) -> str:
    """`2 million` as `2000000`."""
    found = re.fullmatch(rf"(.*\d)\s*(?:\\text\s*\{{\s*)?({'|'.join(_MULTIPLES)})s?\s*\}}?", text, re.IGNORECASE)
    value = number(found[1]) if found else None
    return text if found is None or value is None else str(value * _MULTIPLES[found[2].lower()])
