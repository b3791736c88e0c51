"""The form of an answer: a list, a set, a tuple, an interval, a matrix, an equation, or one value.

`read` takes a cleaned answer apart, down to values (`One`), which stay text. Nothing is computed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .notation import unwrapped
from .pieces import AND, CLOSE, OPEN, RELATION, joined_by, pieces, restricted, split

DEEPEST = 12
"""Nested brackets; an answer with more is read as one value."""


@dataclass(frozen=True)
class One:
    """A value: a number, an expression, words."""

    text: str


@dataclass(frozen=True)
class Many:
    """Several answers.

    Attributes:
        kind: `list`: solutions side by side, in any order; `set`: in braces; `row`: in brackets, in this order;
            `union`: of intervals.
        items: its members.
        brackets: of a row: `()`, `[]`, `[)`, `(]`, `<>`.
    """

    kind: Literal["list", "set", "row", "union"]
    items: tuple[Answer, ...]
    brackets: str = ""

    @property
    def is_interval(self) -> bool:
        """Whether it can be read as an interval: then the kind of its brackets counts."""
        return self.kind == "row" and len(self.items) == 2 and self.brackets != "<>"


@dataclass(frozen=True)
class Grid:
    """A matrix.

    Attributes:
        rows: entries, row by row.
        is_determinant: in bars.
    """

    rows: tuple[tuple[Answer, ...], ...]
    is_determinant: bool = False


@dataclass(frozen=True)
class Equation:
    """`left = right`; of a chain, its first and last member."""

    left: str
    right: Answer
    text: str

    @property
    def names(self) -> bool:
        """Whether its left side only says what the right side is: a letter, `f(x)`, `AB`, `\\angle ABC`, `|AB|`."""
        if _FUNCTION.search(self.left):
            return False
        plain = _SUBSCRIPT.sub("", unwrapped(self.left)).replace("'", "")
        plain = re.sub(r"(?<=[A-Za-z])\s*\^\s*\{?\s*-1\s*\}?(?=\s*\()", "", plain)  # the inverse of a function
        plain = re.sub(
            r"\\(?:angle|triangle|overline|measuredangle|operatorname|mathbb|max|min|theta|lambda|[A-Za-z]+)",
            "N",
            plain,
        )
        plain = re.sub(r"[{}|\s]", "", plain)
        return bool(
            re.fullmatch(r"(?:[A-Za-z]+)(?:\([^()=<>]*\))?|\([A-Za-z](?:,[A-Za-z])+\)|[A-Za-z]+:[A-Za-z]+", plain)
        ) or (bool(re.fullmatch(r"\\frac\s*\{[A-Z]{2}\}\s*\{[A-Z]{2}\}", self.left.strip())))

    @property
    def may_be_dropped(self) -> bool:
        """Whether `right` alone can be meant: not where the left side is a multiple or a power still to be solved."""
        left = re.sub(r"\s+", "", self.left)
        if self.names:
            return True
        solves = _SOLVES.fullmatch(left)
        zero = isinstance(self.right, One) and self.right.text.strip() == "0" and re.search(r"[A-Za-z]", left)
        return not solves and not zero


Answer = One | Many | Grid | Equation

_FUNCTION = re.compile(r"\\(?:sqrt|ln|log|exp)(?![A-Za-z])")
_SOLVES = re.compile(
    r"[+-]?[\d./]*\\?[A-Za-z]+(?:\^(?!.*\\frac).*)?(?:[+-][\d./]+)?|\\frac\{.*\}\{.*\}|[A-Za-z]/[\d.]+|[A-Za-z]!+"
    r"|[\d.]*\\(?:sqrt(?:\[\d+\])?|ln|exp|log(?:_(?:\{\d+\}|\d))?)[({]*[A-Za-z](?:[+-][\d.]+)?[)}]*"
)
"""Left sides that ask for their letter: a multiple, a power, a root or a logarithm of it."""

_SUBSCRIPT = re.compile(r"_\s*(?:\{[^{}]*\}|[A-Za-z0-9])")
_THOUSANDS = re.compile(r"[+-]?\s*[^\w\s]?(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?:\.\d+)?(?![\d,])")
_MATRIX = re.compile(r"\\begin\s*\{([pbvBV]?matrix|smallmatrix|array)\}\s*(?:\{[^{}]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
_BLOCK = re.compile(r"\\(?:begin|end)\s*\{(?:cases|aligned|align\*?|gathered|split|equation\*?)\}")
_NAME = re.compile(r"\|?\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?)\s*\|?")
_BUILDER = re.compile(
    r"\\\{\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{R\}\s*)?(?:\\mid(?![A-Za-z])|\\colon(?![A-Za-z])|:|\|)\s*([^:|]*)\\\}"
)
_INFINITY, _BELOW_ALL = One(r"\infty"), One(r"-\infty")


def read(text: str, depth: int = 0) -> Answer:
    """The form of a cleaned answer."""
    text = text.strip()
    if depth > DEEPEST or len(text) > 4000:
        return One(text)
    if (grid := _grid(text, depth)) is not None:
        return grid
    if _BLOCK.search(text):
        text = re.sub(r"\\\\|&", lambda found: " ; " if found[0] != "&" else " ", _BLOCK.sub(" ", text)).strip()
    for form in (_open_interval, _list, _member, _equation, _union, _range, _bracketed, _both_signs):
        found = form(text, depth)
        if found is not None:
            return found
    return One(text)


def _grid(text: str, depth: int) -> Grid | None:
    if "matrix" not in text and "array" not in text:
        return None
    inner = re.sub(r"^[\[(|]\s*|\s*[\])|]$", "", text) if text[:1] in "[(|" else text
    found = _MATRIX.fullmatch(inner)
    if found is None or found[2].count(r"\begin"):
        return None
    bars = found[1].startswith(("v", "V")) or (text.startswith("|") and text.endswith("|"))
    lines = [line for line in re.split(r"\\\\(?:\[[^\]]*\])?", re.sub(r"\\hline|\\cr", "", found[2])) if line.strip()]
    return Grid(tuple(tuple(read(entry, depth + 1) for entry in line.split("&")) for line in lines), bars)


def _open_interval(text: str, depth: int) -> Many | None:
    """`]1, 2[`, as some countries write it."""
    found = re.fullmatch(r"([\](\[])([^()\[\],;]+)[,;]([^()\[\],;]+)([\[)\]])", text)
    if found is None or (found[1] != "]" and found[4] != "["):
        return None
    ends = tuple(read(end, depth + 1) for end in (found[2], found[3]))
    return Many("row", ends, ("(" if found[1] == "]" else found[1]) + (")" if found[4] == "[" else found[4]))


def _list(text: str, depth: int) -> Answer | None:
    if _THOUSANDS.match(text) and not AND.search(text) and ";" not in text and ", " not in text:
        return None
    parts = pieces(text)
    if len(parts) < 2:
        return None if not parts or parts[0] == text else read(parts[0], depth + 1)
    if any("..." in part or r"\dots" in part or r"\ldots" in part or r"\cdots" in part for part in parts):
        return One(text)
    rows = pieces(text, ";") if ";" in text else []
    if 1 < len(rows) < len(parts) and len({len(pieces(row)) for row in rows}) == 1:  # `p=5, q=2; p=7, q=2`
        inner = [tuple(read(part, depth + 1) for part in pieces(row)) for row in rows]
        return Many("list", tuple(Many("row", row, "()") for row in inner))
    items = [read(part, depth + 1) for part in parts]
    if isinstance(items[0], Equation) and not any(isinstance(item, Equation) for item in items[1:]):
        # `x = 1, 2` says of both what it says of the first.
        items = [items[0], *(Equation(items[0].left, item, "") for item in items[1:])]
    flat: list[Answer] = []
    for item in items:
        flat += item.items if isinstance(item, Many) and item.kind == "list" else [item]
    if (
        all(isinstance(item, Many) and (item.is_interval or item.kind == "union") for item in flat)
        and re.search(r"\\text\s*\{\s*or|(?<![A-Za-z])or(?![A-Za-z])|\\lor|\\vee", text)
        and RELATION.search(text)
    ):
        parted: list[Answer] = []
        for item in flat:
            parted += item.items if isinstance(item, Many) and item.kind == "union" else [item]
        return Many("union", tuple(parted))
    if joined_by(text) == "and" and len(restricted(text)) == 1 and (both := _both_ends(flat)):
        return both
    return Many("list", tuple(flat))


def _both_ends(conditions: list[Answer]) -> Many | None:
    """`x > 1 and x < 5` as the interval that both describe together."""
    rows = [each for each in conditions if isinstance(each, Many) and each.is_interval]
    low = [row for row in rows if row.items[1] == _INFINITY]
    high = [row for row in rows if row.items[0] == _BELOW_ALL]
    if not len(conditions) == len(rows) == 2 or not len(low) == len(high) == 1 or low == high:
        return None
    return Many("row", (low[0].items[0], high[0].items[1]), low[0].brackets[0] + high[0].brackets[1])


def _member(text: str, depth: int) -> Answer | None:
    """`x \\in S` says S, and `{x | x > 5}` what its condition says."""
    if builder := _BUILDER.fullmatch(text):
        return read(builder[1], depth + 1)
    found = re.fullmatch(r"\s*\(?[A-Za-z\\][A-Za-z_{}0-9(), ]*?\s*\\in(?![A-Za-z])(.*)", text, re.DOTALL)
    # The letters before it are names, not words that take it back.
    return (
        read(found[1], depth + 1)
        if found and not re.search(r"(?<!\\)\b[A-Za-z]{3,}", found[0][: found.start(1)])
        else None
    )


def _equation(text: str, depth: int) -> Equation | None:
    parts = split(text, re.compile(r"(?<![<>!:=\\])=(?!=)"))
    if len(parts) < 2 or not all(parts):
        return None
    first, last = parts[0], parts[-1]
    found = Equation(first, read(last, depth + 1), text)
    if not found.names and len(parts) == 2:
        turned = Equation(last, read(first, depth + 1), text)
        if turned.names and not re.search(r"\d", unwrapped(_SUBSCRIPT.sub("", last))):
            return turned
    return found


def _union(text: str, depth: int) -> Many | None:
    parts = split(text, re.compile(r"\\cup(?![A-Za-z])|(?<=[\])]) *U *(?=[\[(])"))
    if len(parts) < 2:
        return None
    items = [read(part, depth + 1) for part in parts]
    if all(isinstance(item, Many) and item.kind == "set" for item in items):
        return Many("set", tuple(inner for item in items for inner in item.items))  # type: ignore[union-attr]
    return Many("union", tuple(items))


def _range(text: str, depth: int) -> Many | None:
    """An inequality about one letter, as the interval it describes."""
    apart = re.fullmatch(r"\s*([A-Za-z]|\\[A-Za-z]+)\s*\\ne(?![A-Za-z])(.*)", text, re.DOTALL)
    if apart:
        holes = [read(piece, depth + 1) for piece in pieces(apart[2])]
        if len(holes) == 1:
            below = Many("row", (One(r"-\infty"), holes[0]), "()")
            return Many("union", (below, Many("row", (holes[0], _INFINITY), "()")))
        return None
    signs = [found[0] for found in RELATION.finditer(text)]
    sides = split(text, RELATION)
    if not 1 <= len(signs) <= 2 or len(sides) != len(signs) + 1 or not all(sides):
        return None
    names = [
        index
        for index, side in enumerate(sides)
        if _NAME.fullmatch(side) and side.strip() not in (r"\infty", r"\pi", "e")
    ]
    rising = [sign in ("<", r"\le") for sign in signs]
    closed = ["l" in sign or "g" in sign for sign in signs]
    if len(signs) == 2:
        if names != [1] or rising[0] != rising[1]:
            return None
        low, high = (0, 2) if rising[0] else (2, 0)
        first, second = (0, 1) if rising[0] else (1, 0)
        return _interval(
            read(sides[low], depth + 1), read(sides[high], depth + 1), closed[first], closed[second], sides[1]
        )
    if len(names) != 1:
        return None
    other = read(sides[1 - names[0]], depth + 1)
    if rising[0] == (names[0] == 0):
        return _interval(One(r"-\infty"), other, False, closed[0], sides[names[0]])
    return _interval(other, _INFINITY, closed[0], False, sides[names[0]])


def _interval(low: Answer, high: Answer, low_closed: bool, high_closed: bool, name: str) -> Many | None:
    if "|" in name:
        return None
    return Many("row", (low, high), ("[" if low_closed else "(") + ("]" if high_closed else ")"))


def _bracketed(text: str, depth: int) -> Answer | None:
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = text[2:-2]
        if re.search(r"\\(?:mid|colon|text|in)(?![A-Za-z])|:|\|", inner) or not _whole(text, 2):
            return None
        items = [read(piece, depth + 1) for piece in pieces(inner)]
        flat = [
            part
            for item in items
            for part in (item.items if isinstance(item, Many) and item.kind == "list" else [item])
        ]
        return Many("set", tuple(flat))
    if text.startswith(r"\langle") and text.endswith(r"\rangle"):
        opening, inner, closing = "<", text[7:-7], ">"
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]") and _whole(text, 1):
        opening, inner, closing = text[0], text[1:-1], text[-1]
    else:
        return None
    parts = pieces(inner, ",;")
    if len(parts) > 1:
        return Many("row", tuple(read(part, depth + 1) for part in parts), opening + closing)
    if opening + closing == "()" and parts:
        return read(inner, depth + 1)
    return None


def _whole(text: str, skip: int) -> bool:
    """Whether the bracket at the beginning is closed at the end and not before."""
    last = len(text) - 1
    depth, position = 0, 0
    while position <= last:
        if text[position] == "\\" and position < last:
            bracket = text[position + 1]
            depth += (bracket == "{") - (bracket == "}")
            if bracket == "}" and depth == 0:
                return position + 1 == last
            position += 2
            continue
        depth += (text[position] in OPEN) - (text[position] in CLOSE)
        if depth == 0:
            return position == last
        position += 1
    return False


def _both_signs(text: str, depth: int) -> Many | None:
    """`a ± b` as the two values it stands for; `∓` has the other sign."""
    if "±" not in text or text.count("±") > 3:
        return None
    other = text.replace(r"\mp", "∓")
    values = [other.replace("±", sign).replace("∓", turned) for sign, turned in (("+", "-"), ("-", "+"))]
    return Many("list", tuple(read(re.sub(r"^\+\s*", "", value), depth + 1) for value in values))
