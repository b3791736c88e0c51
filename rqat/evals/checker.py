"""The process that computes whether two answers are equal; `checking.py` starts it and kills it when it hangs.

Run as a script: reads one JSON object per line (`{"gold", "answer", "kind", "seconds"}`) and writes one word per line.
It imports nothing of rqat, so that starting it again after a kill is cheap. An alarm stops what takes too long; what an
alarm cannot stop (long integers inside C code) ends with the process.

math-verify parses. Values are then compared as numbers: both are evaluated to 50 digits at the same random points, so
that `1/2004!` differs from `1/2006!`, and nothing has to be simplified. math-verify's own comparison decides what has
no value, such as sets.
"""

from __future__ import annotations

import json
import random
import re
import signal
import sys
from typing import Any, NamedTuple

MEMORY_BYTES = 4 << 30
"""Address space of this process; an expression that needs more ends it, and counts as unverifiable."""

DIGITS = 50
MANY_DIGITS = 400
"""Of numbers without letters that agree in the first ones."""

POINTS = 8
"""At which expressions with letters are evaluated."""

ENOUGH = 3
"""Points at which both have to be real numbers and equal."""


class Late(BaseException):
    """The alarm: no `except Exception` on the way may hold it up."""


def limit_memory() -> None:
    """Bounds this process, where the system knows how to."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, OSError, ValueError):
        pass


def parsed(text: str, *, sets: bool = False) -> Any:
    """What math-verify's parser reads in a formula, or None.

    Units are left in it, since single letters are variables, and capitals stay capitals.

    Args:
        sets: read it as math-verify does, which knows more than values.
    """
    from latex2sympy2_extended import NormalizationConfig
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy, normalize_latex
    from math_verify import LatexExtractionConfig, parse
    from math_verify.grader import should_treat_as_complex

    plain = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    if sets:
        config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=plain)
        # Without math-verify's own timers: they are exceptions raised by signals, which long integers never see.
        found = parse(f"\\boxed{{{text}}}", [config], parsing_timeout=None)
        return found[0] if found and not isinstance(found[0], str) else None
    try:
        return latex2sympy(
            normalize_latex(text, plain),
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception:  # the parser's own, and whatever sympy makes of what it has read
        return None


def compare(gold: str, answer: str, kind: str) -> str:
    """`correct`, `wrong` or `unverifiable`; an answer that is no mathematics at all is wrong."""
    from math_verify import verify

    if kind != "any":
        right, found = parsed(gold), parsed(answer)
        if undefined(right) or undefined(found):  # of which sympy's simplification may make anything
            return "unverifiable" if undefined(right) else "wrong"
        equal = same_values(right, found, kind, tolerance(gold, answer))
        if equal is not None:
            return "correct" if equal else "wrong"
    right, found = parsed(gold, sets=True), parsed(answer, sets=True)
    if right is None:
        return "unverifiable"
    if found is None:
        return "wrong"
    agreed = verify(
        right, found, timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True, float_rounding=12
    )
    return "correct" if agreed else "wrong"


class Step(NamedTuple):
    """What the last digit of a decimal counts, which may stand for a value that no decimal is equal to.

    Attributes:
        size: 0 where neither answer is such a decimal.
        of_gold: whether it is the right answer that is one.
    """

    size: float = 0.0
    of_gold: bool = False


EXACT = Step()


def tolerance(gold: str, answer: str) -> Step:
    """Of a decimal of six digits or more, with or without a power of ten; see `quantities.last_digit`."""
    for text in (gold, answer):
        found = re.fullmatch(
            r"\s*[+-]?\s*(\d*)\.(\d+)\s*(?:(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{?\s*([+-]?\d{1,3})\s*\}?|[eE]([+-]?\d{1,3}))?\s*",
            text,
        )
        digits = len((found[1] + found[2]).lstrip("0")) if found else 0
        if found and digits >= 6:
            places = len(found[2]) - int(found[3] or found[4] or 0) - (digits - 16 if 16 < digits < 19 else 0)
            return Step(10.0**-places, text is gold)
    return EXACT


def same_values(right: Any, found: Any, kind: str, allowed: Step) -> bool | None:
    """Whether two expressions have the same value wherever both have one; None where that cannot be told.

    Of an equation's differences, whether one is a multiple of the other.
    """
    import sympy

    if not (isinstance(right, sympy.Expr) and isinstance(found, sympy.Expr)):
        return None
    both = [exact(each) for each in (right, found)]
    names = sorted({symbol.name for each in both for symbol in each.free_symbols})
    equal = values_agree(both, names, kind, allowed, {})
    if not equal and "i" in names:  # a letter, or the imaginary unit
        equal = values_agree(both, names, kind, allowed, {"i": sympy.I})
    return equal


def undefined(expression: Any) -> bool:
    """Whether it divides by a zero that is written there: `4 \\cdot 0/0` is no number, and not 0."""
    import sympy

    if not isinstance(expression, sympy.Expr):
        return False
    return expression.has(sympy.nan, sympy.zoo) or any(
        power.base.is_zero is True and power.exp.is_negative is True for power in expression.atoms(sympy.Pow)
    )


def exact(expression: Any) -> Any:
    """With decimals as the fractions they are."""
    import sympy

    return expression.xreplace({each: sympy.Rational(str(each)) for each in expression.atoms(sympy.Float)})


def values_agree(both: list[Any], names: list[str], kind: str, allowed: Step, fixed: dict[str, Any]) -> bool | None:
    """At random points, the same for letters of the same name."""
    import sympy

    rng = random.Random(0)
    agreeing, ratios = 0, []
    for turn in range(POINTS if names else 1):
        low, high = ((0.1, 2.0), (2.0, 9.0), (-3.0, -0.1), (0.05, 0.95))[turn % 4]
        point = {name: sympy.Rational(str(round(rng.uniform(low, high), 6))) for name in names} | fixed
        values = [value_at(each, point) for each in both]
        if any(value is None for value in values):
            continue
        right, found = values
        if names and not (right.is_real and found.is_real) and not fixed:
            continue
        if kind == "equation":
            if right == 0 or found == 0:
                continue
            ratios.append(found / right)
            if not close(ratios[0], ratios[-1], EXACT):
                return False
        elif not close(right, found, allowed) or (not names and not allowed.size and far_apart(both, point)):
            return False
        agreeing += 1
    return True if agreeing >= (ENOUGH if names else 1) else None


def value_at(expression: Any, point: dict[str, Any], digits: int = DIGITS) -> Any:
    """A number, or None where the expression has none there."""
    import sympy

    replaced = {symbol: point[symbol.name] for symbol in expression.free_symbols}
    try:
        value = expression.subs(replaced).evalf(digits)
    except (ArithmeticError, ValueError, TypeError, AttributeError, RecursionError, NotImplementedError):
        return None
    if value in (sympy.oo, -sympy.oo):
        return value
    return value if value.is_number and value.is_finite and value.is_comparable is not None and _plain(value) else None


def _plain(value: Any) -> bool:
    real, imaginary = value.as_real_imag()
    return bool(real.is_Number and imaginary.is_Number)


def far_apart(both: list[Any], point: dict[str, Any]) -> bool:
    """Whether more digits tell two numbers apart that agree in the first 40: `10^{60}+1` and `10^{60}`."""
    import sympy

    if any(each.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit) for each in both):
        return False  # such take their time, and are not given to so many digits
    right, found = (value_at(each, point, MANY_DIGITS) for each in both)
    if right is None or found is None or not (right.is_finite and found.is_finite) or right == 0:
        return False
    return bool(abs(right - found) > abs(right) * sympy.Float(f"1e-{MANY_DIGITS - 10}"))


def close(right: Any, found: Any, allowed: Step) -> bool:
    """Equal to 40 digits, or one the other rounded or cut off behind the digit of `allowed`."""
    import sympy

    if right in (sympy.oo, -sympy.oo) or found in (sympy.oo, -sympy.oo):
        return bool(right == found)
    if right == 0:  # what is left of two terms that cancel out has no digits that count
        return bool(found == 0 or getattr(found, "_prec", DIGITS) < 10)
    if abs(right - found) <= abs(right) * sympy.Float("1e-40"):
        return True
    if not allowed.size or not (right.is_real and found.is_real):
        return False
    decimal, value = (right, found) if allowed.of_gold else (found, right)
    beyond = abs(value) - abs(decimal)
    return bool(decimal * value > 0 and -allowed.size / 2 <= beyond < allowed.size)


def _alarm(number: int, frame: Any) -> None:
    raise Late


def main() -> None:
    """Answers questions until standard input closes."""
    import logging

    logging.disable(logging.CRITICAL)
    limit_memory()
    import math_verify  # noqa: F401

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _alarm)
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        verdict = "unverifiable"
        try:
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, question["seconds"])
            try:
                verdict = compare(question["gold"], question["answer"], question["kind"])
            finally:
                if hasattr(signal, "setitimer"):
                    signal.setitimer(signal.ITIMER_REAL, 0)
        except (Exception, Late):
            verdict = "unverifiable"
        print(verdict, flush=True)


if __name__ == "__main__":
    main()
