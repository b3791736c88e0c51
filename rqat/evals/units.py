"""What stands behind a number: units with a dimension and a factor, and words that only say what is counted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from .finding import Finding
from .notation import DOLLAR, unwrapped


@dataclass(frozen=True)
class Unit:
    """What stands behind a number.

    Attributes:
        dimension: what is measured, such as `length`, `length^2` or `length/time`; of words without a meaning here,
            the words.
        factor: in the dimension's first unit.
        known: whether the words have a meaning here.
    """

    dimension: str
    factor: Fraction
    known: bool


_SCALES: dict[str, tuple[tuple[str, str], ...]] = {
    "length": (
        ("m meter metre", "1"),
        ("mm millimeter millimetre", "1/1000"),
        ("cm centimeter centimetre", "1/100"),
        ("dm decimeter decimetre", "1/10"),
        ("km kilometer kilometre", "1000"),
        ("in inch", "0.0254"),
        ("ft foot feet", "0.3048"),
        ("yd yard", "0.9144"),
        ("mi mile", "1609.344"),
    ),
    "mass": (
        ("g gram gm gramme", "1"),
        ("mg milligram", "1/1000"),
        ("kg kilogram kilo", "1000"),
        ("oz ounce", "28.349523125"),
        ("lb pound", "453.59237"),
        ("ton", "907184.74"),
        ("tonne", "1000000"),
    ),
    "time": (
        ("s sec second", "1"),
        ("ms millisecond", "1/1000"),
        ("min minute", "60"),
        ("h hr hour", "3600"),
        ("day", "86400"),
        ("week wk", "604800"),
    ),
    "years": (("year yr", "1"), ("month mo", "1/12"), ("decade", "10"), ("century centuries", "100")),
    "volume": (("L l liter litre", "1"), ("mL ml milliliter millilitre", "1/1000"), ("cc", "1/1000")),
    "gallons": (("gal gallon", "1"), ("qt quart", "1/4"), ("pt pint", "1/8"), ("cup", "1/16")),
    "dollars": ((f"{DOLLAR} dollar buck usd", "1"), ("¢ cent ct penny pennies", "1/100")),
    "euros": (("€ euro eur", "1"),),
    "pounds sterling": (("£ gbp", "1"), ("pence", "1/100")),
    "yen": (("¥ yen jpy", "1"),),
    "rupees": (("₹ rs rupee inr", "1"),),
    "yuan": (("yuan rmb cny", "1"),),
    "angle": (("°", "1"),),
    "celsius": (("°C celsius", "1"),),
    "fahrenheit": (("°F fahrenheit", "1"),),
    "kelvin": (("kelvin", "1"),),
    "angle in radians": (("rad radian", "1"),),
    "newtons": (("N newton", "1"),),
    "joules": (("J joule", "1"), ("kJ kilojoule", "1000")),
    "watts": (("W watt", "1"), ("kW kilowatt", "1000")),
    "volts": (("V volt", "1"),),
    "ohms": (("ohm", "1"),),
    "hertz": (("Hz hertz", "1"), ("kHz kilohertz", "1000")),
    "morning": (("AM a.m. am", "1"),),
    "afternoon": (("PM p.m. pm", "1"),),
    "area": (("acre", "1"),),
    "area in hectares": (("hectare ha", "1"),),
}
_MEGA = frozenset(("Mm", "Mg", "Ms"))
"""What would be read as mm, mg and ms if capitals did not count."""

_SPEEDS = {"mph": ("mi", "h"), "kmph": ("km", "h"), "kph": ("km", "h"), "kmh": ("km", "h"), "fps": ("ft", "s")}
SINGLE = frozenset("mgshLlNJWV")
"""Letters that are units behind a space, of an answer that is compared with a plain number."""

_NO_UNITS = frozenset(
    re.findall(
        r"\w+",
        """
        a an the of or and not no to mod if when for less more than over plus minus times divided by is are equals equal
        remainder with without at from but then so where which that as until between approximately about each other
        pi sqrt sin cos tan cot sec csc log ln exp lim max min gcd lcm det inf infty infinity infinite undefined
        hundred thousand million billion trillion quadrillion quintillion dozen lakh lakhs crore crores ten tens
        base squared cubed factorial choose half third quarter percent permille mille fewer below above negative
        halves thirds fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths millionths
        a b c d e f i k n p q r t u v w x y z
        """,
    )
)
"""Words that say more than what is counted."""


@cache
def _known() -> dict[str, Unit]:
    found = {}
    for dimension, scales in _SCALES.items():
        for names, factor in scales:
            for name in names.split():
                found[name] = Unit(dimension, Fraction(factor), True)
    return found


def single(name: str) -> Unit | None:
    """A unit by one word."""
    known = _known()
    if name in known:
        return known[name]
    if len(name) == 1 or name in _MEGA:
        return None
    word = name.rstrip(".").lower()
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in known and len(form) > 1:
            return known[form]
    return None


def unit_of(text: str) -> Unit | None:
    """What words or signs behind a number stand for; None where they are none that only say what is counted."""
    text = unwrapped(re.sub(r"\\cdot|\*|~", " ", text)).strip().rstrip(".,")
    words = re.sub(r"[{}\s]+", " ", text.replace("/", " per ")).strip()
    words = re.sub(r"\^ (?=-?\d)", "^", words)
    for speed, (way, time) in _SPEEDS.items():
        words = re.sub(rf"\b{speed}\b", f"{way} per {time}", words, flags=re.IGNORECASE)
    sides = re.split(r"\s*\bper\b\s*", words)
    if len(sides) > 2 or not all(sides):
        return None
    parts = [_power(side) for side in sides]
    known = [part for part in parts if part is not None]
    if len(known) == len(parts):
        if len(parts) == 1:
            return known[0]
        return Unit(f"{known[0].dimension}/{known[1].dimension}", known[0].factor / known[1].factor, True)
    plain = re.findall(r"[a-z]+", words.lower())
    if not plain or len(plain) > 5 or _NO_UNITS & set(plain) or re.search(r"[^A-Za-z0-9 .,'()^-]", words):
        return None
    return Unit(" ".join(_words_with_powers(sides)), Fraction(1), False)


_PREFIXES = {"sq": 2, "square": 2, "cubic": 3, "cu": 3}
_SUFFIXES = {"squared": 2, "cubed": 3}


def _words_with_powers(sides: list[str]) -> list[str]:
    """Words without a meaning here, each with the power it is in, that of what stands behind "per" negative."""
    powers: dict[str, int] = {}
    for side, sign in zip(sides, (1, -1), strict=False):
        last, prefix = "", 1
        for word, written in re.findall(r"([A-Za-z]+)\.?(?:\^?(-?[1-9])(?![0-9]))?", side):
            plain = word.lower()
            if plain in _SUFFIXES and last:
                powers[last] += sign * (_SUFFIXES[plain] - 1)
            elif plain in _PREFIXES:
                prefix = _PREFIXES[plain]
            else:
                last = plain.removesuffix("s") or plain
                powers[last] = powers.get(last, 0) + sign * prefix * int(written or 1)
                prefix = 1
    return [word if power == 1 else f"{word}^{power}" for word, power in powers.items()]


def _power(words: str) -> Unit | None:
    """`cm^2`, `square cm`, `cubic feet`, `m` or `dollars`, as a unit with its power."""
    found = re.fullmatch(
        r"(?:(sq|square|cubic|cu)\.?\s+)?([A-Za-z°¢€£¥₹¤][A-Za-z.°]*)\s*(?:\^?\s*([1-4])|(squared|cubed))?", words
    )
    if found is None:
        return None
    unit = single(found[2]) if found[2] not in ("am", "pm") or not found[1] else None
    if unit is None:
        return None
    prefix = _PREFIXES.get(found[1], 1)
    power = prefix * (int(found[3]) if found[3] else _SUFFIXES.get(found[4], 1))
    if power == 1:
        return unit
    return Unit(f"{unit.dimension}^{power}", unit.factor**power, True)


def unlike(left: Unit, gold: Unit) -> Finding | None:
    """Why values in these units cannot be equal, or None."""
    if left.dimension == gold.dimension:
        return None
    if {left.dimension, gold.dimension} <= {"angle", "celsius", "fahrenheit"} and "angle" in (
        left.dimension,
        gold.dimension,
    ):
        return None
    words = [set(unit.dimension.split()) for unit in (left, gold)]
    more = words[0] ^ words[1]
    powers = any("^" in word for word in more)  # `apples` and `apples per day`, `units` and `square units`
    if not (left.known or gold.known or powers) and (words[0] <= words[1] or words[1] <= words[0]):
        return None
    return Finding("wrong", f"units differ: {left.dimension} and {gold.dimension}")
