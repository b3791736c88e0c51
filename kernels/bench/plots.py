"""Plots of results as SVG files, drawn from CSV files: `python kernels/bench/plots.py DIR`.

Speedup over 16 bits by rows of the input, memory and time by tokens. Horizontal axes are by powers of two.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .table import Row

WIDTH, HEIGHT = 660, 330
LEFT, RIGHT, TOP, BOTTOM = 56, 150, 34, 40
COLOURS = ("#00796b", "#c2410c", "#1d4ed8", "#a16207", "#7e22ce", "#be123c", "#4d7c0f", "#334155")

Curve = Sequence[tuple[float, float]]


def draw(files: Iterable[Path], folder: Path) -> list[Path]:
    """Writes every plot for which there are rows, and gives the files written."""
    from .table import read

    rows = [row for file in files for row in read(file)]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in pictures(rows).items():
        path = folder / f"{name}.svg"
        path.write_text(picture, encoding="utf-8")
        written.append(path)
    return written


def pictures(rows: Iterable[Row]) -> dict[str, str]:
    """SVG by name of the plot."""
    rows = [row for row in rows if row.p50 is not None and isinstance(row.x, (int, float))]
    found: dict[str, str] = {}
    for model in ("8b", "4b", "0.6b"):
        curves = _speedups(rows, model)
        if curves:
            title = f"Packed linears of a {model} model: times faster than bf16 (cuBLAS), sum over a block"
            found[f"speedup-{model}"] = chart(
                curves, title=title, x_label="rows of the input", y_label="times faster", one=True
            )
    for metric, unit, label in (("memory", "MB", "GB beyond inputs and gradients"), ("speed", "us", "ms")):
        curves = _by_tokens(rows, metric, unit)
        if curves:
            title = f"Distillation loss, forward and backward: {'memory' if metric == 'memory' else 'time'}"
            found[f"linear-kl-{metric}"] = chart(curves, title=title, x_label="tokens", y_label=label)
    return found


def _speedups(rows: Sequence[Row], model: str) -> dict[str, Curve]:
    """Times of a block's four linears added up, bf16 over each provider, at every M for which all four are there."""
    times: dict[tuple[str, float], dict[str, float]] = defaultdict(dict)
    limits: dict[tuple[str, float], dict[str, float]] = defaultdict(dict)
    for row in rows:
        shape = str(row.config.get("shape", ""))
        if (
            row.op == "packed_linear"
            and row.mode == "forward"
            and shape.startswith(f"{model}.")
            and "with" not in row.config
        ):
            if shape.endswith(".head"):
                continue
            times[row.provider, float(row.x)][shape] = row.p50 or 0.0
            limits[row.provider, float(row.x)][shape] = row.limit_us or 0.0
    full = {key: sum(parts.values()) for key, parts in times.items() if len(parts) == 4}
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (provider, x), took in sorted(full.items()):
        base = full.get(("cublas bf16", x))
        if base and provider.startswith("rqat"):
            curves[provider].append((x, base / took))
            limit = sum(limits[provider, x].values())
            if limit:
                curves[f"{provider}: limit"].append((x, base / limit))
    return dict(curves)


def _by_tokens(rows: Sequence[Row], metric: str, unit: str) -> dict[str, Curve]:
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        narrow = row.config.get("width") == 1024 and row.config.get("divergence") == "forward"
        if row.op == "linear_kl" and row.metric == metric and row.unit == unit and row.mode == "full" and narrow:
            curves[row.provider].append((float(row.x), (row.p50 or 0.0) / 1e3))
    return {name: sorted(dict(points).items()) for name, points in curves.items() if len(points) > 1}


def chart(curves: Mapping[str, Curve], *, title: str, x_label: str, y_label: str, one: bool = False) -> str:
    """Lines over a logarithmic x axis; those whose name ends in "limit" are dashed. `one` draws the line y = 1."""
    points = [point for curve in curves.values() for point in curve]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    top = _round_up(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log2(x) - math.log2(low)) / (math.log2(high / low) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="18" font-size="13" fill="#111">{_text(title)}</text>',
    ]
    for step in range(5):
        y = place(low, top * step / 4)[1]
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{top * step / 4:g}</text>')
    for x in sorted({x for x, _ in points}):
        parts.append(f'<text x="{place(x, 0)[0]:.1f}" y="{HEIGHT - 24}" text-anchor="middle" fill="#444">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle" fill="#111">{_text(x_label)}</text>')
    parts.append(f'<text x="12" y="{TOP - 4}" fill="#111">{_text(y_label)}</text>')
    if one:
        parts.append(f'<path d="M{LEFT} {place(low, 1)[1]:.1f}H{WIDTH - RIGHT}" stroke="#111" stroke-dasharray="2 3"/>')
    bases = sorted({name.partition(":")[0] for name in curves})
    for number, (name, curve) in enumerate(sorted(curves.items())):
        colour = COLOURS[bases.index(name.partition(":")[0]) % len(COLOURS)]
        dash = ' stroke-dasharray="6 4" opacity="0.6"' if name.endswith("limit") else ""
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in curve)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if not dash:
            parts += [
                '<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>'.format(*place(x, y), colour) for x, y in curve
            ]
        y = TOP + 14 + 16 * number
        parts.append(f'<path d="M{WIDTH - RIGHT + 10} {y - 4}h18" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 33}" y="{y}" fill="#111">{_text(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8, 10 times a power of ten."""
    power = 10 ** math.floor(math.log10(value)) if value > 0 else 1
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(path for path in sys.path if path != str(here))]
    from bench.plots import draw as draw_all

    for drawn in draw_all(sorted(Path(sys.argv[1]).glob("*.csv")), Path(sys.argv[1])):
        print(drawn)
