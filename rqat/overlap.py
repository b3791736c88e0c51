"""Training rows that hold the problems of an evaluation: word for word, or 13 words in a row.

13 words are what GPT-3 was checked with (arXiv 2005.14165, appendix C). What all problems of a task share at their
beginning or end, an instruction, is left out of account. Where one plugin brings both rows and problems, words in a row
do not count: it makes both by the same rules, and keeps whole problems apart.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .contracts import Row, Source
from .errors import RqatError
from .stage import Finding, Planned, Step, Use

WORDS = 13
"""Words in a row that are found in a problem and in a training row."""

PROBE = WORDS // 2 + 1
"""Wherever `WORDS` words in a row begin, `PROBE` of them begin at a multiple of `PROBE`."""

ROWS, MOST_WORDS = 10_000, 3_000_000
"""How much of a training's data is looked at."""

_WORD = re.compile(r"\w+|[-+*/=<>^%$]")


def overlaps(plan: Planned, make: Callable[[Use], Any], left_out: Collection[str]) -> Iterator[Finding]:
    """A warning for every training and every task whose problems its rows hold.

    Args:
        make: builds what plugins offer.
        left_out: names of steps whose rows are needed no more, or are not there yet.
    """
    trainings = [step for step in plan.steps if "objective" in step.parts and step.name not in left_out]
    asked = _problems(plan, make) if trainings else {}
    for step in trainings if asked else ():
        try:
            yield from _of_training(step, make(step.parts["source"]), asked)
        except RqatError:
            continue


def overlaps_written(plan: Planned, make: Callable[[Use], Any], step: Step, source: Source) -> Iterator[Finding]:
    """The same of one training whose rows the model has written, which nobody could read before the run.

    Args:
        source: of its rows.
    """
    use = step.parts.get("source")
    if use is not None and any(part.card.model for part in use.all()):
        yield from _of_training(step, source, _problems(plan, make))


def _problems(plan: Planned, make: Callable[[Use], Any]) -> dict[str, Problems]:
    """Of every task that a plan evaluates, by its name."""
    asked: dict[str, Problems] = {}
    for step in plan.steps:
        use = step.parts.get("task")
        if use is None or "source" in step.parts or not use.card.load or use.card.compares or use.card.name in asked:
            continue
        try:
            asked[use.card.name] = Problems([_asked(row) for row in make(use).problems()], use.card.module)
        except RqatError:
            continue  # which reading ahead tells
    return asked


def _of_training(step: Step, source: Source, asked: Mapping[str, Problems]) -> Iterator[Finding]:
    if not asked:
        return
    settings: Any = step.settings
    wanted = min(ROWS, settings.steps * settings.batch)
    modules = {part.card.module for part in step.parts["source"].all()}
    rows = itertools.islice(source.rows(settings.data.split, settings.data.seed), wanted)
    found = {task: Found() for task in asked}
    read = budget = 0
    for row in rows:
        prompt = words(_asked(row))
        whole = prompt + words(_answered(row))
        read, budget = read + 1, budget + len(whole)
        for task, problems in asked.items():
            how = problems.compare(prompt, whole if modules != {problems.module} else [])
            found[task].note(how, row.get("place") or f"row {read}")
        if budget > MOST_WORDS:
            break
    for task, one in found.items():
        if one.exact + one.shared:
            text = (
                f"{one.exact + one.shared} of {read} rows overlap with problems of the task '{task}' ({one.exact} word "
                f"for word, {one.shared} by {WORDS} words in a row; the first is {one.first})."
            )
            yield step.finding(
                "warning", "data", text, "What a model does on those problems says little: leave these rows out."
            )


@dataclass
class Found:
    """How many rows hold a problem, and where the first of them was read."""

    exact: int = 0
    shared: int = 0
    first: str = ""

    def note(self, how: str, place: str) -> None:
        """Counts a row: "exact", "shared" or ""."""
        self.exact += how == "exact"
        self.shared += how == "shared"
        self.first = self.first or (place if how else "")


class Problems:
    """The problems of a task, to be found in other texts.

    Args:
        texts: what is asked, instructions included.
        module: of the plugin that brings them.
    """

    def __init__(self, texts: Sequence[str], module: str = "") -> None:
        self.module = module
        listed = [words(text) for text in texts]
        self.before = _common(listed) if len(listed) > 1 else []
        self.behind = _common([each[::-1] for each in listed])[::-1] if len(listed) > 1 else []
        bare = [self._bare(each) for each in listed]
        self.whole = {tuple(each) for each in bare if each}
        self.runs = {run for each in bare for run in _runs(each)}
        self.probes = {run[start : start + PROBE] for run in self.runs for start in range(WORDS - PROBE + 1)}

    def compare(self, prompt: list[str], whole: list[str]) -> str:
        """ "exact" where a prompt asks one of them, "shared" where a text holds words of one in a row, else ""."""
        if tuple(self._bare(prompt)) in self.whole:
            return "exact"
        # Few texts hold even the half, so a look at every seventh place spares the others.
        starts = range(0, len(whole) - PROBE + 1, PROBE)
        if self.probes.isdisjoint(tuple(whole[start : start + PROBE]) for start in starts):
            return ""
        return "" if self.runs.isdisjoint(_runs(whole)) else "shared"

    def _bare(self, found: list[str]) -> list[str]:
        """Without what all problems share."""
        start = len(self.before) if found[: len(self.before)] == self.before else 0
        end = len(found) - len(self.behind)
        return found[start : end if end >= start and found[end:] == self.behind else None]


def words(text: str) -> list[str]:
    """Words, numbers and signs of arithmetic, in lower case; punctuation is left out."""
    return _WORD.findall(text.lower())


def _runs(found: list[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(found[start:] for start in range(WORDS)), strict=False)


def _common(listed: Sequence[list[str]]) -> list[str]:
    """What all begin with; of the shortest at most what leaves a word over."""
    shortest = min(map(len, listed), default=0)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*listed, strict=False))
    return [column[0] for column in itertools.islice(same, max(0, shortest - 1))]


def _asked(row: Row) -> str:
    """What a row asks, in all turns of the user; or its text."""
    if "messages" in row:
        return "\n".join(turn["content"] for turn in row["messages"] if turn["role"] == "user")
    return row.get("prompt") or row.get("text", "")


def _answered(row: Row) -> str:
    if "messages" in row:
        return "\n".join(turn["content"] for turn in row["messages"] if turn["role"] != "user")
    return row.get("completion", "")
