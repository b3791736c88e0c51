"""Where an answer falls into parts: at commas and words outside all brackets, and what the words between them say."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .notation import unwrapped

AND = re.compile(
    r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:land|lor|wedge|vee)(?![A-Za-z])"
)
RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>")
_OPERATOR = re.compile(r"\\(?:land|lor|wedge|vee)(?![A-Za-z])")
OPEN, CLOSE = "([{", ")]}"


def pieces(text: str, separators: str = ",;") -> list[str]:
    """What stands between separators and the words "and", "or", outside all brackets."""
    words = {found.start(): found.end() for found in AND.finditer(text)} if "," in separators else {}
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
        elif text[position] in OPEN:
            level += 1
        elif text[position] in CLOSE:
            level -= 1
        yield position, max(level, 0) if text[position] not in OPEN else 1
        position += step


def split(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Parts between matches of a pattern outside all brackets."""
    free = {position for position, level in _levels(text) if level == 0}
    found, begin = [], 0
    for match in pattern.finditer(text):
        if match.start() in free and match.start() >= begin:
            found.append(text[begin : match.start()].strip())
            begin = match.end()
    return [*found, text[begin:].strip()]


def joined_by(text: str) -> str:
    """`and` or `or`, where the members of an answer are joined by that alone; "" where not."""
    found = {"or" if name in ("or", "lor", "vee") else "and" for name in re.findall(r"[a-z]+", _joiners(text))}
    return found.pop() if len(found) == 1 else ""


def _joiners(text: str) -> str:
    return " ".join(re.sub(r"\\text", " ", match[0]) for match in AND.finditer(text))


def contradict(left: str, gold: str) -> bool:
    """Whether one answer says that both of its parts hold, and the other that one of them does; or of other letters.

    Of solutions side by side it is all the same, `x = 1 and x = 2`; not of conditions, of statements and of names.
    """
    joiners = [joined_by(text) for text in (left, gold)]
    conditions = [bool(RELATION.search(text)) for text in (left, gold)]
    letters = [restricted(text) for text in (left, gold)]
    if all(letters) and letters[0] != letters[1]:
        return True
    if sorted(joiners) == ["and", "or"]:
        return all(conditions) or all(map(_OPERATOR.search, (left, gold))) or all(map(_are_names, (left, gold)))
    return any(
        joiners[side] == "and" and conditions[side] and r"\cup" in (gold, left)[side] for side in range(len(joiners))
    )


def restricted(text: str) -> set[str]:
    """The letters that conditions are about: those beside a sign such as `<`."""
    found = re.findall(r"(?<![A-Za-z\\])([A-Za-z])\s*(?=<|>|\\[lg]e(?![A-Za-z]))", text)
    return {*found, *re.findall(r"(?:[<>]|\\[lg]e(?![A-Za-z]))\s*([A-Za-z])(?![A-Za-z])", text)}


def _are_names(text: str) -> bool:
    return all(re.fullmatch(r"\(?[A-Za-z]\)?|[A-Za-z]{2}[A-Za-z ]*", unwrapped(piece)) for piece in pieces(text))
