"""The form of an answer: a list, a set, a tuple, an interval, a matrix, an equation, or one value.

`read` takes a cleaned answer apart, down to values (`One`), which stay text. Nothing is computed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .notation import closing_brace, unwrapped

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
        plain = _SUBSCRIPT.sub("", unwrapped(self.left)).replace("'", "")
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
        solves = re.fullmatch(r"[+-]?[\d./]*\\?[A-Za-z]+(?:\^.*)?(?:[+-][\d./]+)?|\\frac\{.*\}\{.*\}", left)
        zero = isinstance(self.right, One) and self.right.text.strip() == "0" and re.search(r"[A-Za-z]", left)
        return not solves and not zero


Answer = One | Many | Grid | Equation

_SUBSCRIPT = re.compile(r"_\s*(?:\{[^{}]*\}|[A-Za-z0-9])")
_AND = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:land|lor|wedge|vee)(?![A-Za-z])"
)
_THOUSANDS = re.compile(r"[+-]?\s*[^\w\s]?(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?:\.\d+)?(?![\d,])")
_MATRIX = re.compile(r"\\begin\s*\{([pbvBV]?matrix|smallmatrix|array)\}\s*(?:\{[^{}]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
_BLOCK = re.compile(r"\\(?:begin|end)\s*\{(?:cases|aligned|align\*?|gathered|split|equation\*?)\}")
_RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>")
_NAME = re.compile(r"\|?\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?)\s*\|?")
_BUILDER = re.compile(
    r"\\\{\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{R\}\s*)?(?:\\mid(?![A-Za-z])|\\colon(?![A-Za-z])|:|\|)\s*([^:|]*)\\\}"
)
_OPEN, _CLOSE = "([{", ")]}"
_INFINITY = One(r"\infty")


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


def pieces(text: str, separators: str = ",;") -> list[str]:
    """What stands between separators and the words "and", "or", outside all brackets."""
    words = {found.start(): found.end() for found in _AND.finditer(text)} if "," in separators else {}
    found, begin, position = [], 0, 0
    for position, level in _levels(text):
        if position < begin or level:
            continue
        if position in words:
            found.append(text[begin:position])
            begin = words[position]
        elif text[position] in separators and text[position - 1 : position] != "\\":
            found.append(text[begin:position])
            begin = position + 1
    found.append(text[begin:])
    return [piece.strip() for piece in found if piece.strip()]


def _levels(text: str) -> Iterator[tuple[int, int]]:
    """Every position with the number of brackets that are open there; an environment is a bracket as well."""
    level, position = 0, 0
    while position < len(text):
        if text.startswith(r"\begin", position):
            level += 1
        if text.startswith(r"\end", position):
            level -= 1
        step = 1
        if text[position] == "\\" and position + 1 < len(text):
            name = re.match(r"\\(langle|lfloor|lceil|rangle|rfloor|rceil)(?![A-Za-z])", text[position:])
            bracket = text[position + 1]
            if name:
                level += 1 if name[1][0] == "l" else -1
                step = len(name[0])
            elif bracket in "{}":
                level += 1 if bracket == "{" else -1
                step = 2
            elif not bracket.isalpha():
                step = 2
        elif text[position] in _OPEN:
            level += 1
        elif text[position] in _CLOSE:
            level -= 1
        yield position, max(level, 0) if text[position] not in _OPEN else 1
        position += step


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
    if _THOUSANDS.match(text) and not _AND.search(text) and ";" not in text and ", " not in text:
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
        and _RELATION.search(text)
    ):
        parted: list[Answer] = []
        for item in flat:
            parted += item.items if isinstance(item, Many) and item.kind == "union" else [item]
        return Many("union", tuple(parted))
    return Many("list", tuple(flat))


def _member(text: str, depth: int) -> Answer | None:
    """`x \\in S` says S, and `{x | x > 5}` what its condition says."""
    if builder := _BUILDER.fullmatch(text):
        return read(builder[1], depth + 1)
    found = re.fullmatch(r"\s*\(?[A-Za-z\\][A-Za-z_{}0-9(), ]*?\s*\\in(?![A-Za-z])(.*)", text, re.DOTALL)
    return read(found[1], depth + 1) if found else None


def _equation(text: str, depth: int) -> Equation | None:
    parts = _split(text, re.compile(r"(?<![<>!:=\\])=(?!=)"))
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
    parts = _split(text, re.compile(r"\\cup(?![A-Za-z])|(?<=[\])]) *U *(?=[\[(])"))
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
    signs = [found[0] for found in _RELATION.finditer(text)]
    sides = _split(text, _RELATION)
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
        depth += (text[position] in _OPEN) - (text[position] in _CLOSE)
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


def _split(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Parts between matches of a pattern outside all brackets."""
    free = {position for position, level in _levels(text) if level == 0}
    found, begin = [], 0
    for match in pattern.finditer(text):
        if match.start() in free and match.start() >= begin:
            found.append(text[begin : match.start()].strip())
            begin = match.end()
    return [*found, text[begin:].strip()]


__all__ = ["Answer", "Equation", "Grid", "Many", "One", "closing_brace", "pieces", "read"]
