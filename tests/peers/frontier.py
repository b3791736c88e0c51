"""What so many bytes are worth: the table and the plot of docs/explain/frontier.md, from the measurements beside it.

python -m tests.peers.frontier      # after a line was added to docs/explain/frontier.csv
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rqat.evals.stats import wilson
from rqat.storage import write_text

from .report import as_svg

PAGE = Path(__file__).parents[2] / "docs" / "explain" / "frontier.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 44, 50, 34, 34
LARGEST_MB, HIGHEST = 1000, 0.65
COLOURS = {"rqat": "#0d9488", "llama.cpp": "#d97706", "": "#888"}
"""By who made a file; nobody made the original."""

Row = Mapping[str, str]


def measurements(path: Path = PAGE.with_suffix(".csv")) -> list[Row]:
    """A mapping for every file that was measured; the columns are those of its first line."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def share(row: Row) -> tuple[float, float, float]:
    """The share of problems that were answered rightly, and its 95 % interval."""
    correct, problems = int(row["correct"]), int(row["problems"])
    return (correct / problems, *wilson(correct, problems))


def as_table(rows: Sequence[Row]) -> str:
    """Markdown, the smallest files first."""
    lines = ["| MB | model | file | GSM8K | measured |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (int(row["bytes"]), int(row["correct"]))):
        middle, low, high = (f"{100 * value:.1f}" for value in share(row))
        name = " ".join(filter(None, (row["maker"], row["file"], f"({row['stage']})" * bool(row["stage"]))))
        size = f"{int(row['bytes']) / 1e6:,.0f}"
        lines.append(f"| {size} | {row['model']} | {name} | {middle} % ({low} to {high}) | {row['date']} |")
    return "\n".join(lines) + "\n"


def as_plot(rows: Sequence[Row]) -> str:
    """SVG: megabytes to the right, accuracy upwards, with intervals; files larger than the axis are left out."""

    def x(megabytes: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * megabytes / LARGEST_MB

    def y(accuracy: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * accuracy / HIGHEST

    parts = [
        f'<path d="M{LEFT} {y(tick / 100):.1f}H{WIDTH - RIGHT}" stroke="#8884"/>'
        f'<text x="{LEFT - 6}" y="{y(tick / 100) + 4:.1f}" text-anchor="end">{tick} %</text>'
        for tick in range(0, 61, 10)
    ]
    parts += [
        f'<text x="{x(tick):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{tick:,} MB</text>'
        for tick in range(200, LARGEST_MB + 1, 200)
    ]
    for row in rows:
        if int(row["bytes"]) > LARGEST_MB * 1e6:
            continue
        middle, low, high = share(row)
        at, colour, mark = x(int(row["bytes"]) / 1e6), COLOURS[row["maker"]], 5 if row["model"] == "1.5B" else 3
        opacity = 0.35 if row["stage"] == "gptq" else 1
        label = " ".join(filter(None, (row["model"], row["maker"], row["file"], row["stage"])))
        parts.append(
            f'<g stroke="{colour}" fill="{colour}"><title>{escape(label)}: {100 * middle:.1f} %</title>'
            f'<path d="M{at:.1f} {y(low):.1f}V{y(high):.1f}"/>'
            f'<circle cx="{at:.1f}" cy="{y(middle):.1f}" r="{mark}" fill-opacity="{opacity}"/>'
            "</g>"
        )
        if row["maker"] != "rqat" or row["stage"] == "distilled":
            text, left = row["file"].split(",")[0], row["maker"] == "rqat" and row["file"].startswith("w")
            aside = f'x="{at - 8:.1f}" text-anchor="end"' if left else f'x="{at + 8:.1f}"'
            parts.append(f'<text {aside} y="{y(middle) + 4:.1f}" fill="{colour}">{escape(text)}</text>')
    keys = {maker or "16 bits": colour for maker, colour in COLOURS.items()}
    return as_svg(WIDTH, HEIGHT, LEFT, 130, keys, parts)


def with_table(page: str, table: str) -> str:
    """A page with this table between its two marks."""
    before, rest = page.split(START)
    return f"{before}{START}\n{table}\n{END}{rest.split(END)[1]}"


def main() -> None:
    rows = measurements()
    write_text(PAGE.with_suffix(".svg"), as_plot(rows))
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), as_table(rows)))


if __name__ == "__main__":
    main()
