"""Picks the problems whose completions are worth showing side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..stage import BASE
from .run_files import RunFiles

SHOWN = 4
"""Problems in a report."""


@dataclass(frozen=True)
class Shown:
    """One problem and what every model wrote.

    Attributes:
        why: what makes it worth showing.
        completions: rows of samples.jsonl by variant.
    """

    index: int
    why: str
    prompt: str
    answer: str
    completions: dict[str, Mapping[str, Any]]


def pick(run: RunFiles, task: str) -> list[Shown]:
    """The first problem of each interesting kind, in the order of the kinds; none twice."""
    variants: dict[str, dict[int, dict[str, Any]]] = {}
    for step in run.evaluations:
        if step.results["task"] == task:
            rows = step.samples
            variants[step.variant] = {row["index"]: row for row in reversed(rows)}
    if not variants:
        return []
    common = sorted(set.intersection(*(set(rows) for rows in variants.values())))
    last = list(variants)[-1]
    chosen: dict[int, str] = {}
    for why, wanted in _kinds(run.start, last, list(variants)):
        index = next(
            (i for i in common if i not in chosen and wanted({a: variants[a][i]["verdict"] for a in variants})), None
        )
        if index is not None and len(chosen) < SHOWN:
            chosen[index] = why
    return [
        Shown(
            index,
            why,
            variants[last][index]["prompt"],
            str(variants[last][index].get("answer")),
            {a: variants[a][index] for a in variants},
        )
        for index, why in chosen.items()
    ]


def _kinds(start: str, last: str, variants: list[str]) -> list[tuple[str, Callable[[Mapping[str, str]], bool]]]:
    def right(variant: str) -> Callable[[Mapping[str, str]], bool]:
        return lambda verdicts: verdicts.get(variant) == "correct"

    kinds: list[tuple[str, Callable[[Mapping[str, str]], bool]]] = []
    if last not in (start, BASE) and start in variants:
        kinds.append((f"Wrong after {start}, right after {last}", lambda v: not right(start)(v) and right(last)(v)))
    if BASE in variants and last != BASE:
        kinds.append(
            (f"Right before quantization, wrong after {last}", lambda v: right(BASE)(v) and not right(last)(v))
        )
        kinds.append(
            (f"Wrong before quantization, right after {last}", lambda v: not right(BASE)(v) and right(last)(v))
        )
    kinds.append(("Right by every model", lambda v: all(verdict == "correct" for verdict in v.values())))
    kinds.append(("Wrong by every model", lambda v: all(verdict != "correct" for verdict in v.values())))
    return kinds
