"""What `rqat compare` shows: evaluations of several models, or of several runs, side by side and tested in pairs.

Models are paired problem by problem, so only where they were asked the same prompts and graded against the same
answers; anything else is refused. A problem that was asked with several seeds counts once, by the mean over its seeds:
drawing problems with all their seeds is the bootstrap for such clusters (Davison & Hinkley 1997, section 3.8).
Tasks without problems, that compare a model with its original: `distances.py`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import RunError, UnknownName
from ..evals.harness import scores
from ..evals.stats import paired
from ..figures import hundredths
from .distances import LEGEND, distances, heading
from .distances import lines as lines_of
from .run_files import is_number
from .scored import SAMPLES, Scored, read_scored

COLUMNS = {
    "task": "task",
    "model": "model",
    "accuracy": "accuracy",
    "low": "low",
    "high": "high",
    "n": "problems",
    "seeds": "seeds",
    "against": "against",
    "difference": "difference",
    "difference_low": "difference_low",
    "difference_high": "difference_high",
    "gained": "gained",
    "lost": "lost",
    "p": "p",
    "says": "says",
    "mean_tokens": "mean_tokens",
    "truncated": "cut_off",
    "repetition": "looping",
    "unclosed_think": "unclosed_thinking",
    "unverifiable": "unverifiable",
    "source": "source",
    "figure": "figure",
    "value": "value",
}
"""Columns of the CSV, by what a row calls them."""


def compare(paths: Sequence[Path], *, task: str = "", against: str = "") -> dict[str, Any]:
    """Evaluations found under `paths`, by task, each beside the first one.

    Args:
        task: look at this task only.
        against: label of the model that the others are compared with; the first one if "".

    Returns:
        {"tasks": [{"task", "n", "against", "rows": [...], "notes": [...]}], "left_out": [...]}; shares are from 0 to 1.

    Raises:
        RunError: a path holds no evaluation, or models were asked different things.
        UnknownName: no such task or model.
    """
    by_path = {path: read_scored(path) for path in paths}
    # What is given twice, as a step beside its run, is one model.
    seen: set[Path] = set()
    for path, found in by_path.items():
        by_path[path] = [one for one in found if one.folder.resolve() not in seen]
        seen.update(one.folder.resolve() for one in found)
    by_path = {path: found for path, found in by_path.items() if found}
    if task:
        known = list(dict.fromkeys(one.task for found in by_path.values() for one in found))
        if task not in known:
            raise UnknownName(task, "task of these evaluations", known, where="--task")
        by_path = {path: [one for one in found if one.task == task] for path, found in by_path.items()}
    shared = _shared(by_path)
    chosen = [one for found in by_path.values() for one in found if one.asked in shared]
    rest = [one for found in by_path.values() for one in found if one.asked not in shared]
    labels = _labels(chosen)
    if against and against not in labels.values():
        raise UnknownName(against, "model of these evaluations", list(labels.values()), where="--against")
    tables = [_table([one for one in chosen if one.asked == asked], labels, against) for asked in shared]
    return {"tasks": tables, "left_out": [f"{one.folder} ({one.task})" for one in rest]}


def _shared(by_path: Mapping[Path, Sequence[Scored]]) -> list[tuple[str, str, str]]:
    """What was asked under every path, in the order of the first.

    Raises:
        RunError: there is nothing of the kind; the message says what differs.
    """
    first, *others = by_path.items()
    shared = list(dict.fromkeys(one.asked for one in first[1]))
    for path, found in others:
        left = [asked for asked in shared if asked in {one.asked for one in found}]
        if not left:
            _refuse(first[0], first[1], path, found)
        shared = left
    return shared


def _refuse(one: Path, mine: Sequence[Scored], other: Path, theirs: Sequence[Scored]) -> None:
    """Says why two inputs cannot be paired."""
    names = [list(dict.fromkeys(scored.task for scored in found)) for found in (mine, theirs)]
    both = [name for name in names[0] if name in names[1]]
    if not both:
        raise RunError(
            f"'{one}' was evaluated on {', '.join(names[0])}, '{other}' on {', '.join(names[1])}.",
            hint="Only results on the same task are compared: evaluate both on one.",
        )
    pair = [next(scored for scored in found if scored.task == both[0]) for found in (mine, theirs)]
    counts = " and ".join(f"{scored.results['n']:,}" for scored in pair)
    if all(scored.compares for scored in pair):
        raise RunError(
            f"'{one}' and '{other}' were compared with originals on different rows of '{both[0]}' ({counts} rows).",
            hint="Evaluate both on the same rows: source, split, seed, limit, and tokenizer.",
        )
    same_prompts = pair[0].asked[1] == pair[1].asked[1]
    what = "graded against different answers" if same_prompts else "asked different prompts"
    raise RunError(
        f"'{one}' and '{other}' were {what} of '{both[0]}' ({counts} problems).",
        hint="Evaluate both with the same options: data, limit, steps, chat template.",
    )


def _labels(chosen: Sequence[Scored]) -> dict[Path, str]:
    """What every evaluation's model is called, by its folder: as short as tells them apart."""
    ways = (
        lambda one: one.label,
        lambda one: f"{one.given.resolve().name}/{one.label}",
        lambda one: f"{one.given}/{one.label}",
        lambda one: f"{one.given}/{one.label} ({one.folder.name})",
    )
    found: dict[Path, str] = {}
    for way in ways:
        names = Counter((one.asked, way(one)) for one in chosen)
        alone = {way(one) for one in chosen if names[one.asked, way(one)] > 1}
        found = {one.folder: found.get(one.folder, "") or ("" if way(one) in alone else way(one)) for one in chosen}
    return found


def _table(found: Sequence[Scored], labels: Mapping[Path, str], against: str) -> dict[str, Any]:
    """One task: a row for every model, with the test against the one they are compared with."""
    base = next((one for one in found if labels[one.folder] == against), found[0])
    if base.compares:
        return distances(found, base, labels)
    rows = []
    for one in found:
        figures = one.results
        row: dict[str, Any] = {
            "model": labels[one.folder],
            **{key: figures[key] for key in ("accuracy", "low", "high", "n")},
            "seeds": len(figures["seeds"]) if isinstance(figures.get("seeds"), list) else 1,
            **{key: figures.get(key) for key in ("mean_tokens", "truncated", "repetition", "unclosed_think")},
            "unverifiable": figures.get("unverifiable"),
            "source": str(one.folder),
        }
        if one is not base and base.asked[1]:
            row |= _difference(one, base, labels[base.folder])
        rows.append(row)
    return {
        "task": base.task,
        "n": base.results["n"],
        "against": labels[base.folder],
        "rows": rows,
        "notes": _notes(found, base),
    }


def _difference(now: Scored, before: Scored, name: str) -> dict[str, Any]:
    """The paired test of two evaluations of the same problems.

    Raises:
        RunError: a file of samples is not whole.
    """
    mine, theirs = scores(now.samples), scores(before.samples)
    for one, found in ((now, mine), (before, theirs)):
        if len(found) != one.results["n"]:
            raise RunError(
                f"'{one.folder / SAMPLES}' tells of {len(found):,} problems, its results.json of {one.results['n']:,}.",
                hint="The file is damaged: evaluate again.",
            )
    result = paired(mine, theirs)
    told = asdict(result)
    return {
        "against": name,
        "difference": told["difference"],
        "difference_low": told["low"],
        "difference_high": told["high"],
        **{key: told[key] for key in ("gained", "lost", "p")},
        "says": result.says,
    }


def _notes(found: Sequence[Scored], base: Scored) -> list[str]:
    """In what else than the model the evaluations of one task differ."""
    notes = []
    if not base.asked[1] and len(found) > 1:
        notes.append("Not paired: this task's scores are not right or wrong problem by problem.")
    for key, words in (("backend", "written by different backends"), ("generation", "sampled differently")):
        values = [one.results.get(key) for one in found if one.results.get(key) is not None]
        told = [_sampling(value) if isinstance(value, Mapping) else str(value) for value in values]
        if len(set(told)) > 1:
            notes.append(f"The answers were {words}: {'; '.join(dict.fromkeys(told))}.")
    return notes


def _sampling(generation: Mapping[str, Any]) -> str:
    """Settings of the sampling that decide what is written; how many are written at once does not."""
    return ", ".join(f"{key} {value}" for key, value in generation.items() if key != "batch")


def markdown(found: Mapping[str, Any]) -> str:
    """One table a task; differences in points, their intervals at 95 %."""
    parts = []
    for table in found["tasks"]:
        if "figures" in table:
            parts += [f"{heading(table)}\n\n{_aligned(lines_of(table, p_value), left=(0, 1, 5))}\n"]
            parts += [f"{note}\n" for note in table["notes"]]
            continue
        seeds = {row["seeds"] for row in table["rows"]}
        times = f", each {seeds.pop()} times" if seeds != {1} and len(seeds) == 1 else ""
        head = [
            *("model", "accuracy % (95 %)", f"against {table['against']} (95 %)", "gained / lost", "p", ""),
            *("tokens", "cut off %", "looping %", "unclosed %"),
        ]
        lines = [head, *(_cells(row) for row in table["rows"])]
        parts.append(f"### {table['task']}: {table['n']:,} problems{times}\n\n{_aligned(lines)}\n")
        parts += [f"{note}\n" for note in table["notes"]]
    tested = {"figure" in row for table in found["tasks"] for row in table["rows"] if "says" in row}
    if True in tested:
        parts.append(f"{LEGEND}\n")
    if False in tested:
        parts.append(
            "Differences in points. Paired problem by problem: exact McNemar test (of several seeds, sign test on "
            "their means) at 5 %; intervals of differences by bootstrap over problems, 10,000 draws. Unclosed: "
            "thinking that never ended.\n"
        )
    return "\n".join(parts)


def _cells(row: Mapping[str, Any]) -> list[str]:
    accuracy = f"{hundredths(row['accuracy'])} ({hundredths(row['low'])} to {hundredths(row['high'])})"
    change = ["", "", "", ""]
    if "says" in row:
        low, high = (f"{100 * row[key]:+.1f}" for key in ("difference_low", "difference_high"))
        change = [
            f"{100 * row['difference']:+.1f} ({low} to {high})",
            f"{row['gained']} / {row['lost']}",
            p_value(row["p"]),
            row["says"],
        ]
    shares = (hundredths(row[key]) if is_number(row[key]) else "" for key in _SHARES)
    tokens = f"{row['mean_tokens']:.0f}" if is_number(row["mean_tokens"]) else ""
    return [row["model"], accuracy, *change, tokens, *shares]


_SHARES = ("truncated", "repetition", "unclosed_think")


def p_value(p: float) -> str:
    """A p-value as it is printed: "0.031", "<0.001"."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _aligned(lines: Sequence[Sequence[str]], left: Sequence[int] = (0, 5)) -> str:
    """A Markdown table that can be read as it stands; names to the left, figures to the right."""
    clean = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    widths = [max(3, *(len(line[index]) for line in clean)) for index in range(len(clean[0]))]
    to_left = [index in left for index in range(len(widths))]
    rule = ["-" * width if at else "-" * (width - 1) + ":" for width, at in zip(widths, to_left, strict=True)]
    rows = [
        [cell.ljust(width) if at else cell.rjust(width) for cell, width, at in zip(line, widths, to_left, strict=True)]
        for line in clean
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [rows[0], rule, *rows[1:]])


def as_csv(found: Mapping[str, Any]) -> str:
    """A line for every model and task; shares from 0 to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS.values())
    for table in found["tasks"]:
        for row in table["rows"]:
            writer.writerow([{"task": table["task"], **row}.get(key) for key in COLUMNS])
    return text.getvalue()


def as_json(found: Mapping[str, Any]) -> str:
    """All of it."""
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"md": markdown, "csv": as_csv, "json": as_json}
