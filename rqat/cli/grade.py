"""`rqat grade`: judges answers that lie in a file, as evaluations and rewards judge them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError, RqatError
from ..figures import percent
from ..storage import write_json_lines
from ..text_files import parse_json, read_text
from . import display, options

CORRECT = {"correct": True, "wrong": False, "unverifiable": None}
"""A verdict as JSON."""


def grade(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows to judge: .jsonl or .jsonl.gz.")],
    response_field: Annotated[
        str, typer.Option("--response-field", metavar="FIELD", help="What a model wrote: a completion, or an answer.")
    ] = "completion",
    gold_field: Annotated[str, typer.Option("--gold-field", metavar="FIELD", help="The right answer.")] = "answer",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="[default: FILE with .graded.jsonl at its end]")
    ] = None,
    forms: Annotated[
        list[str] | None,
        typer.Option(
            "--form",
            metavar="FORM",
            help="Where an answer may stand: boxed, answer (behind 'the answer is'), hashes (behind ####), short (a "
            "text of one line), conclusion (a last sentence with 'therefore'), number (the last one). May be "
            "repeated.  [default: all but number]",
        ),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that one answer may take.")] = 5.0,
    as_json: options.Json = False,
) -> None:
    """Judge the answers in a file.

    Writes every row again with `correct` (true, false, or null where it cannot be told) and `reason` beside it. The
    function is the one that evaluations and GRPO's rewards use. A field that holds a list of values is several answers.
    """
    from ..evals.grade import ANY, judge

    wanted = _forms(forms or [], ANY)
    rows = _rows(file, (response_field, gold_field))
    place = out or file.with_name(f"{file.name.removesuffix('.gz').removesuffix('.jsonl')}.graded.jsonl")
    if place.resolve() == file.resolve():
        raise RqatError(f"'{place}' is the file that is read.", hint="Choose another with -o.")
    if place.is_dir() or not place.parent.is_dir():
        what = "is a folder" if place.is_dir() else "has no folder to lie in"
        raise RqatError(f"'{place}' {what}.", hint="Choose a file with -o.")
    graded = []
    with display.Bars().task("grade", len(rows)) as bar:
        for row in rows:
            judged = judge(_text(row[response_field]), _text(row[gold_field]), timeout_s=timeout_s, forms=wanted)
            graded.append({**row, "correct": CORRECT[judged.verdict], "reason": judged.reason})
            bar.update(len(graded))
    write_json_lines(place, graded)
    counts = Counter(row["correct"] for row in graded)
    reasons = Counter(row["reason"] for row in graded if not row["correct"])
    found = {
        "rows": len(graded),
        "correct": counts[True],
        "wrong": counts[False],
        "unverifiable": counts[None],
        "accuracy": counts[True] / len(graded),
        "no_answer": reasons["no answer"] + reasons["thinking never ended"],
    }
    if as_json:
        display.print_json(found)
    else:
        _show(found)
    display.note(f"Wrote {place}")


def _forms(names: list[str], known: tuple[Any, ...]) -> Any:
    every = (*known, "number")
    for name in names:
        if name not in every:
            raise RqatError(f"--form: '{name}' is none.", hint=f"Known: {', '.join(every)}.")
    return tuple(names) or known


def _text(value: Any) -> str:
    """An answer as text; a list of values is several answers, side by side."""
    if isinstance(value, list) and value and not any(isinstance(each, list | dict) for each in value):
        return ", ".join(map(_text, value))
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rows(path: Path, fields: tuple[str, str]) -> list[dict[str, Any]]:
    """The rows of a file, every one with the fields.

    Raises:
        DataError: the file cannot be read, or a line is no such row; the message names the line.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}.", hint="Write one object per line.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: a {type(row).__name__}, no object.", hint="Write one object per line.")
        missing = [field for field in fields if field not in row]
        if missing:
            raise DataError(
                f"{path}:{number}: no field '{missing[0]}'; there are {', '.join(map(repr, row)) or 'none'}.",
                hint="Name the fields with --response-field and --gold-field.",
            )
        rows.append(row)
    if not rows:
        raise DataError(f"'{path}' holds no rows.", hint="Give a file of JSON objects, one a line.")
    return rows


def _show(found: dict[str, Any]) -> None:
    from ..evals.stats import wilson

    low, high = wilson(found["correct"], found["rows"])
    lines = [
        ("correct", f"{found['correct']} of {found['rows']}, {percent(found['accuracy'])}"),
        ("95 % interval", f"{percent(low)} to {percent(high)} (Wilson)"),
        ("wrong", f"{found['wrong']}, of which {found['no_answer']} without an answer"),
        ("unverifiable", found["unverifiable"]),
    ]
    for name, value in lines:
        typer.echo(f"{name:<16}{value}")
