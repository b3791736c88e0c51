"""Figures of all cells, from the files in their run folders: rows for a table, sweep.csv, sweep.html with curves."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ..figures import seconds
from ..report import charts
from ..report.page import document
from ..run_folder import MANIFEST
from ..stage import WATCHED
from ..storage import PARTIAL, read_json, read_json_lines, write_text
from .cells import Cell, Sweep, short_keys, shown
from .controller import Folders

LONGEST_VALUE = 24
"""Characters of a value that the table has room for; sections written out are told by the cell's name."""

COUNTS = ("n", "low", "high")
"""What stands beside an accuracy in the CSV."""


@dataclass
class Row:
    """What is known of a cell.

    Attributes:
        state: see `controller.State`.
        seconds: that its own steps took, those taken from other cells included.
        figures: by name: "arith.kd.accuracy", "kl on arith.kd.kl"; those of the last model it has made come last.
        watched: by name: "kd.kl", with the values by optimizer step.
        last: the figures of the last model, under short names.
    """

    cell: Cell
    state: str
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    watched: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)


def read_row(cell: Cell, folder: Path, state: str) -> Row:
    """Reads a cell's run folder; whatever is not there yet is left out."""
    row = Row(cell, state)
    for name in cell.prints:
        row.seconds += float((read_json(folder / name / MANIFEST) or {}).get("seconds", 0.0))
        for where in (folder / name, folder / f"{name}{PARTIAL}"):
            for line in read_json_lines(where / "training.jsonl"):
                for key in (key for key in line if key.startswith(WATCHED)):
                    figure = f"{cell.step(name).variant}.{key.removeprefix(WATCHED)}"
                    row.watched.setdefault(figure, []).append((float(line["step"]), float(line[key])))
    summary: Mapping[str, Any] = read_json(folder / "summary.json") or {}
    for task, variants in summary.get("tasks", {}).items():
        for variant, found in variants.items():
            row.figures[f"{task}.{variant}.accuracy"] = found["accuracy"]
            row.figures |= {f"{task}.{variant}.{name}": found[name] for name in COUNTS if name in found}
            row.last[task] = found["accuracy"]
    for label, variants in summary.get("compared", {}).items():
        for variant, found in variants.items():
            row.figures |= {f"{label}.{variant}.{name}": value for name, value in found["figures"].items()}
            row.last |= {f"{name} ({label})": value for name, value in found["figures"].items()}
    for name, points in row.watched.items():
        row.figures[f"watched.{name}"] = row.last[f"watched {name}"] = points[-1][1]
    return row


def table_of(sweep: Sweep, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table on the screen: every cell with the figures of the last model it has made.

    A cell is told by its values; where those of a key are too long for that, or cells have names, by its name, too.
    """
    short = short_keys(sweep.keys)
    names = list(dict.fromkeys(name for row in rows for name in row.last))
    brief = [key for key in sweep.keys if all(len(_value(row, key)) <= LONGEST_VALUE for row in rows)]
    named = ["cell"] if len(brief) < len(sweep.keys) or any(row.cell.called for row in rows) else []
    body = [
        [
            *(row.cell.name for _ in named),
            *(_value(row, key) for key in brief),
            row.state,
            *(f"{row.last[name]:.4g}" if name in row.last else "-" for name in names),
            seconds(row.seconds),
        ]
        for row in rows
    ]
    return [*named, *(short[key] for key in brief), "state", *names, "time"], body


def _value(row: Row, key: str) -> str:
    """What the cell has of its own for the key, if it has something."""
    return shown(row.cell.values[key]) if key in row.cell.values else ""


def csv_of(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Every figure of every cell; one line for each."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", *sweep.keys, "state", "seconds", *names])
    for row in rows:
        values = [_value(row, key) for key in sweep.keys]
        figures = [row.figures.get(name, "") for name in names]
        writer.writerow([row.cell.name, *values, row.state, round(row.seconds, 3), *figures])
    return text.getvalue()


def page_of(sweep: Sweep, rows: Sequence[Row]) -> str:
    """One HTML file: the table, the watched figures over the steps, and every last figure over every number swept."""
    columns, body = table_of(sweep, rows)
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in line)}</tr>" for line in body)
    parts = [
        f"<header><h1>{escape(sweep.name)}</h1>"
        f'<p class="soft">{escape(sweep.recipe.name)}, {len(rows)} cells</p></header>',
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>',
        f'<div class="charts">{"".join([*_watched(rows), *_against(sweep, rows)])}</div>',
    ]
    return document(sweep.name, parts)


def _watched(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row.watched)
    return [
        charts.curves(
            {row.cell.name: row.watched[name] for row in rows if name in row.watched}, title=name, x_label="step"
        )
        for name in names
    ]


def _against(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """A chart for every last figure and every key that is a number everywhere; a line for each choice of the others."""
    short, drawn = short_keys(sweep.keys), []
    for key in sweep.keys:
        values = [row.cell.values.get(key) for row in rows]
        if len(set(map(str, values))) < 2 or not all(_is_number(value) for value in values):
            continue
        decades = min(values) > 0 and max(values) >= 10 * min(values)  # type: ignore[type-var, operator]
        for name in dict.fromkeys(name for row in rows for name in row.last):
            series: dict[str, list[tuple[float, float]]] = {}
            for row in rows:
                if name in row.last:
                    others = {short[k]: v for k, v in row.cell.values.items() if k != key}
                    line = ", ".join(f"{k}={shown(v)}" for k, v in others.items()) or name
                    x = float(row.cell.values[key])
                    series.setdefault(line, []).append((math.log10(x) if decades else x, row.last[name]))
            label = f"log10 of {short[key]}" if decades else short[key]
            ordered = {line: sorted(points) for line, points in series.items()}
            drawn.append(charts.curves(ordered, title=f"{name} over {short[key]}", x_label=label))
    return drawn


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_results(sweep: Sweep, folders: Folders, states: Mapping[str, str]) -> list[Row]:
    """Writes sweep.csv and sweep.html; the rows they are made of."""
    rows = [read_row(cell, folders.cell(cell), states[cell.name]) for cell in sweep.cells]
    write_text(folders.root / "sweep.csv", csv_of(sweep, rows))
    write_text(folders.root / "sweep.html", page_of(sweep, rows))
    return rows
