"""What a comparison found: comparison.csv, comparison.md, comparison.svg."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rqat.storage import write_text

from .cells import ORIGINAL, Result

FIGURES = (
    *("kl_in", "perplexity_in", "kl_out", "perplexity_out", "accuracy"),
    *("cpu_s", "wall_s", "peak_bytes", "host_bytes"),
)
COLUMNS = ("model", "name", "bits", "group", "version", *FIGURES, "failed", "date", "machine")

ROW, LEFT, WIDTH, TOP = 18, 150, 620, 46
COLOURS = {"in": "#1f6feb", "out": "#d97706"}


def write_report(folder: Path, results: Sequence[Result]) -> str:
    """Writes the three files; the table."""
    table = as_table(results)
    write_text(folder / "comparison.csv", as_csv(results))
    write_text(folder / "comparison.md", table)
    write_text(folder / "comparison.svg", as_plot(results))
    return table


def as_csv(results: Sequence[Result]) -> str:
    """A line for every cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for result in results:
        whole = result["asked"] | result
        writer.writerow({column: whole.get(column, "") for column in COLUMNS})
    return text.getvalue()


def as_table(results: Sequence[Result]) -> str:
    """Markdown; the lowest KL of each width is in bold, in domain and out of it; GSM8K stands where it was asked."""
    asked_problems = any("accuracy" in each for each in results)
    titles = ["bits", "method", "KL in domain", "perplexity", "KL out of it", "perplexity"]
    titles += ["GSM8K"] * asked_problems + ["CPU s", "wall s", "peak"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for result in results:
        asked = result["asked"]
        start = f"| {asked['bits']} | {asked['name']} |"
        if "failed" in result:
            lines.append(f"{start} failed: {result['failed'].replace('|', '/')} |" + " |" * (len(titles) - 3))
            continue
        kls = [_bold(f"{result[key]:.4g}", _least(results, result, key)) for key in ("kl_in", "kl_out")]
        ppl = [_number(result[key]) for key in ("perplexity_in", "perplexity_out")]
        ppl[1] += f" | {result['accuracy']:.1%}" if "accuracy" in result else " |" * asked_problems
        if asked["name"] == ORIGINAL.name:
            lines.append(f"{start} 0 | {ppl[0]} | 0 | {ppl[1]} | | | |")
            continue
        cost = f"{result['cpu_s']:.0f} | {result['wall_s']:.0f} | {result['peak_bytes'] / 1e9:.2f} GB |"
        lines.append(f"{start} {kls[0]} | {ppl[0]} | {kls[1]} | {ppl[1]} | {cost}")
    return "\n".join(lines) + "\n"


def as_plot(results: Sequence[Result]) -> str:
    """SVG: a line for every cell, KL in domain and out of it as two dots on a logarithmic axis."""
    drawn = [each for each in results if each.get("kl_in", 0) > 0 and each.get("kl_out", 0) > 0]
    values = [each[f"kl_{domain}"] for each in drawn for domain in COLOURS]
    low = math.floor(math.log10(min(values))) if values else -1
    high = max(low + 1, math.ceil(math.log10(max(values)))) if values else 1

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 20) * (math.log10(value) - low) / (high - low)

    height, parts = TOP + ROW * len(drawn) + 10, []
    for power in range(low, high + 1):
        at = x(10.0**power)
        parts.append(f'<path d="M{at:.1f} {TOP - 8}V{height - 6}" stroke="#8884"/>')
        parts.append(f'<text x="{at:.1f}" y="{TOP - 14}" text-anchor="middle">{10.0**power:g}</text>')
    for number, each in enumerate(drawn):
        y = TOP + ROW * number + 6
        label = f"w{each['asked']['bits']} {each['asked']['name']}"
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        parts += [
            f'<circle cx="{x(each[f"kl_{domain}"]):.1f}" cy="{y}" r="4.5" fill="{colour}">'
            f"<title>{escape(label)}: {each[f'kl_{domain}']:.4g} {domain}</title></circle>"
            for domain, colour in COLOURS.items()
        ]
    keys = {"KL, in domain": COLOURS["in"], "KL, out of domain": COLOURS["out"]}
    return as_svg(WIDTH, height, LEFT, 170, keys, parts)


def as_svg(width: int, height: int, left: int, apart: int, keys: Mapping[str, str], parts: Sequence[str]) -> str:
    """A picture with what its colours mean above it.

    Args:
        left: where the first key stands, and `apart` how far each is from the next.
        keys: what a colour means, and the colour.
    """
    key = "".join(
        f'<circle cx="{left + apart * i}" cy="12" r="4.5" fill="{colour}"/>'
        f'<text x="{left + apart * i + 9}" y="16">{meaning}</text>'
        for i, (meaning, colour) in enumerate(keys.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11" fill="#777">{key}{"".join(parts)}</svg>\n'
    )


def _least(results: Sequence[Result], result: Result, key: str) -> bool:
    """Whether no cell of the same width has a lower value, of several."""
    rivals = [each[key] for each in results if key in each and each["asked"]["bits"] == result["asked"]["bits"]]
    return len(rivals) > 1 and bool(result[key] == min(rivals))


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def _number(value: float) -> str:
    """A perplexity: "7.59", "388", "3e+05"."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0e}"
