"""Picks the problems whose completions are worth showing side by side, and finds where two completions part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..stage import BASE
from .run_files import RunFiles

SHOWN = 5
"""Problems of each kind in a report."""

LONGEST_TEXT = 4000
"""Characters of a text that are shown; further ones are in samples.jsonl."""

LONGEST_SAME = 600
"""Of what two completions begin with alike, the last characters that are shown."""

_TOKENS = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[/?INST\]"
)
"""Tokens by which chat templates mark turns and ends, and models nothing else."""

CHANGED, LOST, GAINED = "changed", "lost", "gained"


@dataclass(frozen=True)
class Shown:
    """One problem and what every model wrote.

    Attributes:
        why: what makes it worth showing.
        kinds: any of `CHANGED`, `LOST` and `GAINED`.
        completions: rows of samples.jsonl by variant.
    """

    index: int
    why: str
    kinds: tuple[str, ...]
    prompt: str
    answer: str
    completions: dict[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Picked:
    """Problems of a task to show.

    Attributes:
        reference: the variant that the others' completions are held against.
        last: the last one, whose gains and losses count.
        counts: of all problems, by kind; "all" is how many there are.
    """

    reference: str
    last: str
    shown: list[Shown] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def pick(run: RunFiles, task: str) -> Picked:
    """The first problems of each interesting kind; none twice."""
    variants: dict[str, dict[int, dict[str, Any]]] = {}
    for step in run.tasks.get(task, ()):
        variants[step.variant] = {row["index"]: row for row in reversed(step.samples)}
    variants = {variant: rows for variant, rows in variants.items() if rows}
    if not variants:
        return Picked("", "")
    common = sorted(set.intersection(*(set(rows) for rows in variants.values())))
    last = run.furthest(variants)
    picked = Picked(BASE if BASE in variants else next(iter(variants)), last)
    picked.counts.update({"all": len(common), CHANGED: 0, LOST: 0, GAINED: 0})
    of_kind: dict[str, int] = {}
    for index in common:
        rows = {variant: variants[variant][index] for variant in variants}
        right = {variant: row["verdict"] == "correct" for variant, row in rows.items()}
        why, kinds = _kind(right, run.start, picked)
        for kind in kinds:
            picked.counts[kind] += 1
        of_kind[why] = of_kind.get(why, 0) + 1
        if of_kind[why] <= SHOWN:
            prompt, answer = rows[last]["prompt"], str(rows[last].get("answer"))
            picked.shown.append(Shown(index, why, kinds, prompt, answer, dict(rows)))
    order = list(dict.fromkeys(sorted((s.why for s in picked.shown), key=_weight)))
    picked.shown.sort(key=lambda shown: order.index(shown.why))
    return picked


def _kind(right: Mapping[str, bool], start: str, picked: Picked) -> tuple[str, tuple[str, ...]]:
    """What a problem shows, and under which filters it stands."""
    last, base = picked.last, picked.reference
    kinds = [CHANGED] if len(set(right.values())) > 1 else []
    before = "before quantization" if base == BASE else f"after {base}"
    if last != base and right[base] != right[last]:
        kinds.append(GAINED if right[last] else LOST)
        words = ("Wrong", "right") if right[last] else ("Right", "wrong")
        return f"{words[0]} {before}, {words[1]} after {last}", tuple(kinds)
    if start in right and start not in (last, base) and right[last] and not right[start]:
        return f"Wrong after {start}, right after {last}", tuple(kinds)
    if kinds:
        return "Not the same for every model", tuple(kinds)
    return ("Right" if right[last] else "Wrong") + " by every model", ()


def _weight(why: str) -> int:
    """Kinds that tell most come first."""
    if why.startswith("Wrong after"):
        return 0
    if why.startswith(("Right before", "Right after")):
        return 1
    return 2 if why.startswith("Wrong before") else 3 if why.startswith("Not") else 4


@dataclass(frozen=True)
class Written:
    """A completion in three parts, without the tokens of its chat template.

    Attributes:
        same: what it begins with as another one does.
        parted: the first step that is another; "" where all is the same, or there is nothing to compare with.
        rest: what follows.
        hidden: characters left out in front.
        cut: whether its end was left out.
    """

    same: str
    parted: str
    rest: str
    hidden: int = 0
    cut: bool = False


def plain(text: str) -> str:
    """A text without the tokens of its chat template."""
    return _TOKENS.sub("", text).strip()


def held_against(text: str, other: str | None) -> Written:
    """A completion, with the first step marked in which it parts from another.

    A step is a line; in a text of one line, a sentence.
    """
    mine = plain(text)
    if other is None:
        return Written(*_shortened("", "", mine))
    theirs = plain(other)
    pattern = r"(?<=\n)" if "\n" in mine and "\n" in theirs else r"(?<=[.!?])\s+"
    steps, others = _steps(mine, pattern), _steps(theirs, pattern)
    same = 0
    while same < len(steps) and same < len(others) and steps[same].strip() == others[same].strip():
        same += 1
    parted = steps[same] if same < len(steps) else ""
    return Written(*_shortened("".join(steps[:same]), parted, "".join(steps[same + 1 :])))


def _steps(text: str, pattern: str) -> list[str]:
    """A text in its steps; joined again they are the text."""
    ends = [found.end() for found in re.finditer(pattern, text)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if text[a:b]]


def _shortened(same: str, parted: str, rest: str) -> tuple[str, str, str, int, bool]:
    hidden = max(0, len(same) - LONGEST_SAME) if parted else 0
    same = same[hidden:]
    room = LONGEST_TEXT - len(same)
    cut = len(parted) + len(rest) > room
    return same[:LONGEST_TEXT], parted[:room], rest[: max(0, room - len(parted))], hidden, cut
