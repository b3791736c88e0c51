"""Whether two answers say the same: form by form down to values, and values by exact numbers where they have them.

What no rule here decides is asked of `compute` (math-verify and numbers, in a process of its own). The rules, case by
case: docs/explain/grading.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from ..contracts import Verdict
from .answers import Answer, Equation, Grid, Many, One, read
from .bases import as_ratio, in_bases, same_date, same_ratio, same_time
from .finding import SAME, Finding
from .notation import balanced, cleaned, compact, unwrapped
from .number_words import number_word
from .pieces import contradict
from .quantities import Quantity, cut_off, improper, joined, number, quantity, same_number
from .units import unlike
from .words import ALL_REAL, NOTHING, TIMES_ZERO, choice, same_words, told_number, words_of

MOST_CHARACTERS = 1000
"""Of an answer in one spelling that is taken apart and computed with; longer ones are compared as text."""

LONGEST = 2000
"""Of an answer that is brought into one spelling; longer ones are compared as they stand."""

MOST_MEMBERS = 60
"""Of a list or set whose members are compared with one another."""

Compute = Callable[[str, str, str], Verdict]
"""Asks about right answer, found answer and a kind: `value`, `equation` (both sides' differences), or `any`."""


_SETS = re.compile(
    r"\\(?:setminus|backslash|mathbb|cap|cup|mid|subset|ne|in|le|ge|forall|lor|land)(?![A-Za-z])|[<>]|\\[{}]"
)


def same(found: str, right: str, compute: Compute) -> Finding:
    """Compares a found answer with the right one, as they stand in a text."""
    if max(len(found), len(right)) > LONGEST:
        return SAME if found.strip() == right.strip() else _long_integers(found, right)
    left, gold = joined(cleaned(found)), joined(cleaned(right))
    if not gold:
        return Finding("unverifiable", "the right answer is empty")
    if not left:
        return Finding("wrong", "no answer")
    if compact(left) == compact(gold):
        return SAME
    if max(len(left), len(gold)) > MOST_CHARACTERS:
        return _long_integers(left, gold)
    if not balanced(left):
        return Finding("wrong", "brackets do not match")
    if (letter := choice(left, gold)) is not None:
        return letter
    left, gold = (text if (said := number_word(unwrapped(text))) is None else str(said) for text in (left, gold))
    left, gold = as_ratio(left, gold), as_ratio(gold, left)
    if _decimal_comma(left, gold):
        return Finding("correct", "equal, with a decimal comma")
    if number(gold) is not None and (told := told_number(left)) is not None:
        left = told
    if contradict(left, gold):
        return Finding("wrong", "'and' in place of 'or', or another letter")
    return _Comparison(compute, left, gold).compare(read(left), read(gold))


def _long_integers(left: str, gold: str) -> Finding:
    digits = [re.sub(r"[,\s$]", "", text).lstrip("+0") for text in (left, gold)]
    if all(text.isdigit() for text in digits):
        return SAME if digits[0] == digits[1] else Finding("wrong", "different numbers")
    return Finding("wrong", "different, and too long to be computed")


def _decimal_comma(left: str, gold: str) -> bool:
    """Whether a comma stands for the point: `1000,99`, where the right answer is a number and no list."""
    for text, other in ((left, gold), (gold, left)):
        body = quantity(text).body
        if re.fullmatch(r"[+-]?\d+,\d+", body) and not re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", body):
            value = number(quantity(other).body)
            # Of the right answer, `1,22` may be a list; `0,22` is none.
            if (
                value is not None
                and value == number(body.replace(",", "."))
                and (text is left or body.lstrip("+-")[0] == "0")
            ):
                return True
    return False


_PLAIN = re.compile(r"\s*[+-]?[\d.]+\s*|.*[eE^].*")
"""Of numbers, what the parser reads as this module does: integers and decimals, and powers of ten."""


class _Comparison:
    """One comparison of two answers."""

    def __init__(self, compute: Compute, left: str, gold: str) -> None:
        self.compute, self.left, self.gold = compute, left, gold

    def compare(self, found: Answer, right: Answer) -> Finding:
        """Of any two forms."""
        if isinstance(found, Equation) or isinstance(right, Equation):
            return self._equations(found, right)
        if isinstance(found, Grid) or isinstance(right, Grid):
            return self._grids(found, right)
        if isinstance(found, Many) and isinstance(right, Many):
            return self._many(found, right)
        if isinstance(found, One) and isinstance(right, One):
            return self.values(found.text, right.text)
        return self._unlike(found, right)

    def _equations(self, found: Answer, right: Answer) -> Finding:
        if isinstance(found, Equation) and isinstance(right, Equation):
            if _name(found.left) == _name(right.left) and found.names:
                return self.compare(found.right, right.right)
            if sorted(("(" in found.left, "(" in right.left)) == [False, True] and "y" in (found.left, right.left):
                return self.compare(found.right, right.right)  # `f(x) = 2x` and `y = 2x`
            if not (found.text and right.text):
                return Finding("wrong", "said of different things")
            if found.names and right.names and not _has_letters(right.right) and not _has_letters(found.right):
                return Finding("wrong", f"said of {found.left} in place of {right.left}")
            return self._relation(found, right)
        if isinstance(right, Equation):
            if not right.names:
                return Finding("wrong", "an equation is asked for")
            return self.compare(found, right.right)
        assert isinstance(found, Equation)
        if not found.may_be_dropped:
            return Finding("wrong", "an equation in place of its solution")
        verdict = self.compare(found.right, right)
        if verdict.verdict == "correct" and not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", found.left)):
            # `12 + 6 = 18` has to hold: `2 = 18` says nothing.
            return verdict if self.compare(read(found.left), right).verdict == "correct" else Finding("wrong", "untrue")
        return verdict

    def _relation(self, found: Equation, right: Equation) -> Finding:
        """Equations in letters: equal where one's difference of both sides is a multiple of the other's."""
        sides = []
        for equation in (right, found):
            if not isinstance(equation.right, One):
                return Finding("wrong", "different equations")
            sides.append(f"({equation.left})-({equation.right.text})")
        return self._computed(sides[0], sides[1], "equation")

    def _grids(self, found: Answer, right: Answer) -> Finding:
        if isinstance(found, Grid) and isinstance(right, Grid):
            if found.is_determinant != right.is_determinant:
                return Finding("wrong", "a determinant is no matrix")
            if [len(row) for row in found.rows] != [len(row) for row in right.rows]:
                return Finding("wrong", "matrices of different shapes")
            return self._in_order(_entries(found), _entries(right))
        grid, other = (found, right) if isinstance(found, Grid) else (right, found)
        assert isinstance(grid, Grid)
        if isinstance(other, Many) and other.kind == "row" and not grid.is_determinant:
            rows = other.items
            if all(isinstance(row, Many) and row.kind == "row" for row in rows):
                inner = Grid(tuple(row.items for row in rows if isinstance(row, Many)))
                return self._grids(inner, right) if grid is right else self._grids(found, inner)
            if len(grid.rows) == 1 or all(len(row) == 1 for row in grid.rows):
                pair = (_entries(grid), other.items)
                return self._in_order(*(pair if grid is found else pair[::-1]))
        if isinstance(other, One):
            return self._computed(self.gold, self.left, "any")
        return Finding("wrong", "a matrix and something else")

    def _many(self, found: Many, right: Many) -> Finding:
        kinds = {found.kind, right.kind}
        if kinds == {"row"}:
            if found.is_interval and right.is_interval and found.brackets != right.brackets:
                return Finding("wrong", "brackets of another kind")
            return self._in_order(found.items, right.items)
        if kinds <= {"list", "set"} or kinds == {"union"}:
            return self._in_any_order(found, right)
        parts = found if found.kind == "list" else right
        if kinds == {"list", "union"} and all(isinstance(item, Many) and item.is_interval for item in parts.items):
            return self._in_any_order(found, right)
        if kinds == {"list", "row"}:
            row = found if found.kind == "row" else right
            if row.brackets not in ("()", "<>") and len(row.items) == 2:
                return Finding("wrong", "an interval and a list")
            return self._in_order(found.items, right.items)
        if "union" in kinds:
            return self._computed(self.gold, self.left, "any")
        return Finding("wrong", "a set has no order, a tuple has")

    def _unlike(self, found: Answer, right: Answer) -> Finding:
        """One value beside several."""
        one, many = (found, right) if isinstance(found, One) else (right, found)
        assert isinstance(one, One)
        assert isinstance(many, Many)
        text = compact(one.text).casefold()
        if many.brackets == "()" and (point := re.fullmatch(r"[A-Z]\s*(\(.*,.*\))", one.text)):  # `A(2,3)`
            named = read(point[1])
            return self.compare(*((named, many) if one is found else (many, named)))
        if many.kind == "set" and not many.items:
            return (
                SAME
                if NOTHING.fullmatch(unwrapped(one.text).strip())
                else Finding("wrong", "the empty set and something else")
            )
        if (
            many.brackets == "()"
            and text in ALL_REAL
            and [compact(_text(item)) for item in many.items]
            in (
                [r"-\infty", r"\infty"],
                [r"-\infty", r"+\infty"],
            )
        ):
            return SAME
        if many.kind == "set" and len(many.items) == 1 and NOTHING.fullmatch(unwrapped(_text(many.items[0])).strip()):
            return Finding("wrong", "the empty set is not a set that holds it")
        if many.kind in ("list", "set") and len(many.items) == 1:
            return self.compare(*((one, many.items[0]) if one is found else (many.items[0], one)))
        if many is found and many.kind == "list":  # `x = 1.5 or 3/2` says one thing twice
            # Not `5, 5`, which is two answers, and not `x = 5, y = 5`.
            texts = {compact(_text(item)) for item in many.items}
            names = {item.left for item in many.items if isinstance(item, Equation)}
            if len(texts) < len(many.items) or len(names) > 1:
                return Finding("wrong", "several values and one")
            for item in many.items:
                if self.compare(item, one).verdict != "correct":
                    return Finding("wrong", "several values and one")
            return SAME
        if _SETS.search(one.text):
            return self._computed(self.gold, self.left, "any")
        return Finding("wrong", "one value and several" if one is found else "several values and one")

    def _in_order(self, found: Sequence[Answer], right: Sequence[Answer]) -> Finding:
        if len(found) != len(right):
            return Finding("wrong", f"{len(found)} members in place of {len(right)}")
        worst = SAME
        for place, (one, other) in enumerate(zip(found, right, strict=True), 1):
            verdict, reason = self._members(one, other)
            if verdict == "wrong":
                return Finding("wrong", f"member {place}: {reason}")
            if verdict == "unverifiable":
                worst = Finding(verdict, f"member {place}: {reason}")
        return worst

    def _in_any_order(self, found: Many, right: Many) -> Finding:
        """Every member has one of the other side; in a set, members that are there twice count once."""
        left, gold = list(found.items), list(right.items)
        if "set" in (found.kind, right.kind) or all(isinstance(item, Many) for item in left + gold):
            left, gold = self._distinct(left), self._distinct(gold)
        if len(left) != len(gold):
            return Finding("wrong", f"{len(left)} members in place of {len(gold)}")
        if len(left) > MOST_MEMBERS:
            return Finding("wrong", "different, and too many members to be compared")
        worst = SAME
        for one in left:
            found_at = None
            for place, other in enumerate(gold):
                verdict, reason = self._members(one, other)
                if verdict == "correct":
                    found_at = place
                    break
                if verdict == "unverifiable":
                    worst = Finding(verdict, reason)
            if found_at is None:
                return worst if worst is not SAME else Finding("wrong", f"{_text(one)} is not among the right ones")
            gold.pop(found_at)
        return SAME

    def _members(self, one: Answer, other: Answer) -> Finding:
        """Of two members of something: there a set is not the one value that it holds."""
        are_sets = [isinstance(each, Many) and each.kind == "set" for each in (one, other)]
        return Finding("wrong", "a set and a value") if are_sets[0] != are_sets[1] else self.compare(one, other)

    def _distinct(self, items: list[Answer]) -> list[Answer]:
        kept: dict[str, Answer] = {}
        for item in items:
            kept.setdefault(compact(_text(item)), item)
        return list(kept.values())

    # ------------------------------------------------------------------------------------------------------ values

    def values(self, found: str, right: str) -> Finding:
        """Of two values: numbers with units, expressions, words."""
        if compact(found) == compact(right):
            return SAME
        for rule in (in_bases, same_time, same_date):
            if (decided := rule(found, right)) is not None:
                return decided
        if bool(re.search(r"\d_", found)) != bool(re.search(r"\d_", right)):
            return Finding("wrong", "a subscript behind a number")
        left, gold = quantity(found), quantity(right, right=True)
        if left.unit and left.unit.known and gold.unit is None and (read_as := quantity(right)).unit:
            gold = read_as  # `5 m`, where the found answer has metres or feet as well
        factor = Fraction(1)
        if left.unit and gold.unit:
            refused = unlike(left.unit, gold.unit)
            if refused:
                return refused
            if left.unit.known and gold.unit.known:
                factor = left.unit.factor / gold.unit.factor
        if (times := same_ratio(left.body, gold.body)) is not None:
            return times
        if any(map(improper, (left.body, gold.body))):
            return Finding("wrong", "no mixed number")
        for side, other in ((left, gold), (gold, left)):  # degrees and radians
            if side.unit and side.unit.dimension == "angle" and not other.unit and r"\pi" in other.body:
                turned = f"({side.body})\\cdot\\frac{{\\pi}}{{180}}"
                return self._computed(*((gold.body, turned) if side is left else (turned, left.body)), "value")
        if (left.percent and gold.unit) or (gold.percent and left.unit):
            return Finding("wrong", "a percentage and a quantity")
        percents = self._percents(left, gold)
        if percents is not None:
            return percents
        return self._bodies(left.body, gold.body, factor)

    def _percents(self, left: Quantity, gold: Quantity) -> Finding | None:
        """A percent sign on one side: `50%` is 50, since the question often has the sign, and 0.5."""
        if left.percent == gold.percent:
            return None
        plain = self._bodies(left.body, gold.body, Fraction(1))
        # Below one, what has no sign is a share: 1/2 is 50%, and not half a percent; a decimal may have lost its sign.
        without = gold.body if left.percent else left.body
        value = number(without)
        share = value is not None and abs(value) < 1 and (left.percent or "frac" in without or "/" in without)
        if plain.verdict == "correct" and not share:
            return plain
        hundredth = Fraction(1, 100) if left.percent else Fraction(100)
        return self._bodies(left.body, gold.body, hundredth)

    def _bodies(self, found: str, right: str, factor: Fraction) -> Finding:
        """Of two values without units; the found one counts `factor` times."""
        found, right = cut_off(found), cut_off(right)
        left, gold = _value(found), _value(right)
        if left is not None and gold is not None:
            equal = left * factor == gold if factor != 1 else same_number(left, gold, found, right)
            if equal:
                return SAME if factor == 1 else Finding("correct", "equal in the other unit")
            return Finding("wrong", "different numbers")
        if factor == 1 and compact(found) == compact(right):
            return SAME
        if any(value == 0 and TIMES_ZERO.search(other) for value, other in ((left, right), (gold, found))):
            return Finding("wrong", "zero and letters")  # times which it would be 0, whatever they say: `0 to 1`
        words = [words_of(text) for text in (found, right)]
        if words[0] is not None or words[1] is not None:
            return same_words(found, right, words)
        if not re.search(r"[0-9A-Za-z]", found) or not balanced(found):
            return Finding("wrong", "not an answer")
        found, right = (
            text if value is None or _PLAIN.fullmatch(text) else f"({value})"
            for text, value in ((found, left), (right, gold))
        )
        if factor != 1:
            found = f"({found})*({factor})"
        return self._computed(right, found, "any" if _SETS.search(found + right) else "value")

    def _computed(self, right: str, found: str, kind: str) -> Finding:
        if max(len(right), len(found)) > MOST_CHARACTERS:
            return Finding("wrong", "different, and too long to be computed")
        if right.count("'") != found.count("'"):
            return Finding("wrong", "different numbers of primes")
        if kind != "any":
            right, found = (
                re.sub(r"(\d+(?:\.\d+)?)\s*°", r"(\1\\cdot\\frac{\\pi}{180})", unwrapped(text))
                .replace("°", "")
                .replace("%", r"\%")
                for text in (right, found)
            )
        verdict = self.compute(right, found, kind)
        reasons = {"correct": "equal by computation", "wrong": "not equal", "unverifiable": "could not be computed"}
        return Finding(verdict, reasons[verdict])


def _name(left: str) -> str:
    """`f` of `f(x)`; what stands for a value or an event is part of the name, as in `f(2)` and `P(A)`."""
    return re.sub(r"\([a-z]\)$", "", compact(left)) or compact(left)


def _has_letters(answer: Answer) -> bool:
    return not isinstance(answer, One) or bool(re.search(r"(?<![\\A-Za-z])[A-Za-df-hj-z](?![A-Za-z])", answer.text))


def _entries(grid: Grid) -> tuple[Answer, ...]:
    return tuple(entry for row in grid.rows for entry in row)


def _text(answer: Answer) -> str:
    if isinstance(answer, One):
        return answer.text
    if isinstance(answer, Equation):
        return answer.text or f"{answer.left}={_text(answer.right)}"
    if isinstance(answer, Grid):
        return r"\\".join("&".join(map(_text, row)) for row in answer.rows)
    opening, closing = (*answer.brackets, "", "")[:2] if answer.brackets else ("", "")
    return opening + ", ".join(map(_text, answer.items)) + closing


def _value(text: str) -> Fraction | None:
    found = number(text)
    return found if found is not None else number_word(unwrapped(text))
