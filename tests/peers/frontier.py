"""What so many bytes are worth: the table and the plots of docs/explain/frontier.md, from the measurements beside it.

python -m tests.peers.frontier      # after a line was added to docs/explain/frontier.csv
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import log
from pathlib import Path

from rqat.evals.stats import wilson
from rqat.storage import write_text

from .report import as_svg

PAGE = Path(__file__).parents[2] / "docs" / "explain" / "frontier.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 44, 50, 34, 34
LARGEST_MB, HIGHEST, NEAREST, FARTHEST = 1000, 0.65, 0.005, 0.6
COLOURS = {"rqat": "#0d9488", "llama.cpp": "#d97706", "MLX": "#7c3aed", "": "#888"}
"""By who made a file; nobody made the original."""

DISTANCES = ("kl_domain", "kl_elsewhere")
"""Columns of nats a token to the original: on answers to problems of the domain, and on WikiText-2."""

Row = Mapping[str, str]


def measurements(path: Path = PAGE.with_suffix(".csv")) -> list[Row]:
    """A mapping for every file, by the names of the first line; what was not measured is empty."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def share(row: Row) -> tuple[float, float, float]:
    """The share of problems that were answered rightly, and its 95 % interval."""
    correct, problems = int(row["correct"]), int(row["problems"])
    return (correct / problems, *wilson(correct, problems))


def as_table(rows: Sequence[Row]) -> str:
    """Markdown, the smallest files first."""
    lines = ["| MB | model | file | GSM8K | KL, answers | KL, WikiText-2 | measured |", "|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (int(row["bytes"]), int(row["correct"] or 0))):
        name = " ".join(filter(None, (row["maker"], row["file"], f"({row['stage']})" * bool(row["stage"]))))
        size = f"{int(row['bytes']) / 1e6:,.0f}"
        answers = ""
        if row["correct"]:
            middle, low, high = (f"{100 * value:.1f}" for value in share(row))
            answers = f"{middle} % ({low} to {high})"
        near, far = (row[key].removeprefix("0") for key in DISTANCES)
        lines.append(f"| {size} | {row['model']} | {name} | {answers} | {near} | {far} | {row['date']} |")
    return "\n".join(lines) + "\n"


def as_plot(rows: Sequence[Row]) -> str:
    """SVG: megabytes to the right, accuracy upwards, with intervals; files larger than the axis are left out."""

    def y(accuracy: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * accuracy / HIGHEST

    parts = _axes([(y(tick / 100), f"{tick} %") for tick in range(0, 61, 10)])
    for row in _shown(rows, ("correct",)):
        middle, low, high = share(row)
        at, mark = _x(row), 5 if row["model"] == "1.5B" else 3
        opacity = 0.35 if row["stage"] == "gptq" else 1
        parts.append(
            _point(
                row,
                f"{100 * middle:.1f} %",
                f'<path d="M{at:.1f} {y(low):.1f}V{y(high):.1f}"/>'
                f'<circle cx="{at:.1f}" cy="{y(middle):.1f}" r="{mark}" fill-opacity="{opacity}"/>',
            )
        )
        if row["maker"] != "rqat" or row["stage"] in ("distilled", "GRPO"):
            left = (row["maker"] == "rqat" and row["file"].startswith("w")) or _crowded(row, rows)
            parts.append(_aside(row, y(middle), left, row["file"].split(",")[0] if row["stage"] != "GRPO" else "GRPO"))
    return as_svg(WIDTH, HEIGHT, LEFT, 130, _keys(rows), parts)


def as_distances(rows: Sequence[Row]) -> str:
    """SVG: megabytes to the right, the logarithm of KL upwards; dots in the domain, rings on WikiText-2."""

    def y(kl: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * log(FARTHEST / max(kl, NEAREST)) / log(FARTHEST / NEAREST)

    parts = _axes([(y(tick), f"{tick:g}") for tick in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)])
    for row in _shown(rows, DISTANCES):
        near, far = (float(row[key]) for key in DISTANCES)
        if near < NEAREST:
            continue
        at, mark = _x(row), 5 if row["model"] == "1.5B" else 3
        parts.append(
            _point(
                row,
                f"{near:.4f}, {far:.4f}",
                f'<path d="M{at:.1f} {y(near):.1f}V{y(far) + mark:.1f}" stroke-opacity="0.3"/>'
                f'<circle cx="{at:.1f}" cy="{y(near):.1f}" r="{mark}"/>'
                f'<circle cx="{at:.1f}" cy="{y(far):.1f}" r="{mark}" fill="none"/>',
            )
        )
        left = row["maker"] == "rqat"
        parts.append(_aside(row, y(near), left, row["stage"] if left else row["file"].split(",")[0]))
    return as_svg(WIDTH, HEIGHT, LEFT, 130, _keys(rows), parts)


def _x(row: Row) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * int(row["bytes"]) / 1e6 / LARGEST_MB


def _axes(ticks: Sequence[tuple[float, str]]) -> list[str]:
    lines = [
        f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#8884"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in ticks
    ]
    for tick in range(200, LARGEST_MB + 1, 200):
        at = _x({"bytes": f"{tick}000000"})
        lines.append(f'<text x="{at:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{tick:,} MB</text>')
    return lines


def _shown(rows: Sequence[Row], needed: Sequence[str]) -> list[Row]:
    """Those that the axis has room for, and of which all of this was measured."""
    return [row for row in rows if int(row["bytes"]) <= LARGEST_MB * 1e6 and all(row[key] for key in needed)]


def _point(row: Row, figure: str, shapes: str) -> str:
    colour = COLOURS[row["maker"]]
    label = " ".join(filter(None, (row["model"], row["maker"], row["file"], row["stage"])))
    return f'<g stroke="{colour}" fill="{colour}"><title>{escape(label)}: {figure}</title>{shapes}</g>'


def _aside(row: Row, y: float, left: bool, text: str) -> str:
    at = f'x="{_x(row) - 8:.1f}" text-anchor="end"' if left else f'x="{_x(row) + 8:.1f}"'
    return f'<text {at} y="{y + 4:.1f}" fill="{COLOURS[row["maker"]]}">{escape(text)}</text>'


def _crowded(row: Row, rows: Sequence[Row]) -> bool:
    """Whether another maker's file is so close to the right of this one that no name has room between them."""

    def near(other: Row) -> bool:
        return 0 < _x(other) - _x(row) < 40 and abs(share(other)[0] - share(row)[0]) < 0.02

    return bool(row["maker"]) and any(near(other) for other in _shown(rows, ("correct",)) if other["maker"] != "rqat")


def _keys(rows: Sequence[Row]) -> dict[str, str]:
    makers = {row["maker"] for row in rows}
    return {maker or "16 bits": colour for maker, colour in COLOURS.items() if maker in makers}


PLOTS: Mapping[str, Callable[[Sequence[Row]], str]] = {"frontier.svg": as_plot, "frontier-kl.svg": as_distances}
"""Beside the page, by name."""


def with_table(page: str, table: str) -> str:
    """A page with this table between its two marks."""
    before, rest = page.split(START)
    return f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}"


def main() -> None:
    rows = measurements()
    for name, plot in PLOTS.items():
        write_text(PAGE.with_name(name), plot(rows))
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), as_table(rows)))


if __name__ == "__main__":
    main()
