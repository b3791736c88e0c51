"""Charts without scripts: intervals on one axis, curves over steps, a heat map of layers.

Curves are SVG; what has to fit any width is HTML, placed in percent. Colours are variables of `style.css`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ..figures import hundredths

WIDTH, HEIGHT = 380.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 12.0, 10.0, 24.0
COLOURS = 6
"""Number of series colours in `style.css`; further series start again."""

MOST_POINTS = 300
"""A curve with more points is averaged over equal pieces."""

NUMBERED = 12
"""A heat map of as many columns has room for figures in its cells."""

Curve = Sequence[tuple[float, float]]
Interval = tuple[float, float, float]


def intervals(rows: Mapping[str, Interval], order: Sequence[str] = ()) -> str:
    """Shares with their intervals, one below the other on an axis that fits them.

    Args:
        rows: low, middle and high, by name.
        order: names in the order of their colours; those of `rows` if empty.
    """
    if not rows:
        return ""
    low, high = min(row[0] for row in rows.values()), max(row[2] for row in rows.values())
    if high <= 1:
        ticks = [tick for tick in _ticks(max(0.0, low - 0.02), min(1.0, high + 0.02)) if -1e-9 <= tick <= 1 + 1e-9]
    else:  # no shares: lm-eval's perplexities, say
        ticks = _ticks(low, high)
    sign = " %" if high <= 1 else ""
    bounds = (ticks[0], ticks[-1])
    grid = "".join(f'<i class="rule" style="left:{100 * _share(tick, bounds):.2f}%"></i>' for tick in ticks)
    drawn = []
    numbers = {name: number for number, name in enumerate(dict.fromkeys([*order, *rows]))}
    for name, row in rows.items():
        left, middle, right = (100 * _share(min(max(value, bounds[0]), bounds[1]), bounds) for value in row)
        label = f"{name}: {hundredths(row[1])}{sign}, 95 % interval {hundredths(row[0])} to {hundredths(row[2])}"
        drawn.append(
            f'<b class="name">{escape(name)}</b>'
            f'<div class="lane" role="img" aria-label="{escape(label)}" title="{escape(label)}" '
            f'style="--c:{_colour(numbers[name])}">{grid}'
            f'<i class="whisker" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
            f'<i class="dot" style="left:{middle:.2f}%"></i></div>'
            f'<span class="figure">{hundredths(row[1])}{sign}</span>'
        )
    axis = "".join(
        f'<span style="left:{100 * _share(tick, bounds):.2f}%">{100 * tick if sign else tick:.4g}{sign}</span>'
        for tick in ticks
    )
    return f'<div class="forest">{"".join(drawn)}<span></span><div class="ticks">{axis}</div><span></span></div>'


def curves(
    series: Mapping[str, Curve],
    *,
    title: str,
    x_label: str,
    smooth: bool = False,
    percent: bool = False,
    first_colour: int = 0,
) -> str:
    """Lines over a common x axis; the y axis starts at 0 unless a value is negative.

    Args:
        series: points by name, x ascending; points that are not finite are left out.
        smooth: draw the points faintly and a running mean over them.
        percent: y values are shares.
        first_colour: number of the first line's colour, of `COLOURS`.
    """
    finite = {name: _fewer([p for p in points if math.isfinite(p[1])]) for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    points = [point for each in finite.values() for point in each]
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points), whole=True)
    y_ticks = _ticks(min(0.0, min(y for _, y in points)), max(y for _, y in points), count=3)
    x_range = (min(x for x, _ in points), max(x for x, _ in points))
    y_range = (y_ticks[0], y_ticks[-1])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * _share(point[0], x_range),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _share(point[1], y_range),
        )

    parts = []
    for tick in y_ticks:
        y = place((x_range[0], tick))[1]
        text = _figure(tick) if not percent else f"{100 * tick:.3g} %"
        parts.append(f'<path class="grid" d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x_ticks:
        if x_range[0] <= tick <= x_range[1]:
            x = place((tick, y_range[0]))[0]
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 6:.0f}" text-anchor="middle">{tick:g}</text>')
    for number, line in enumerate(finite.values(), first_colour):
        style = f'style="--c:{_colour(number)}"'
        drawn = _path([place(point) for point in line])
        if smooth and len(line) > 8:
            mean = _path([place(point) for point in _running_mean(line)])
            parts.append(f'<path class="faint" {style} d="{drawn}"/><path class="line" {style} d="{mean}"/>')
        else:
            parts.append(f'<path class="line" {style} d="{drawn}"/>')
        if len(line) <= 20:
            parts += [f'<circle class="dot" {style} cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in map(place, line)]
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{_legend(list(finite))}"
        f'<span class="axis">{escape(x_label)}</span></figcaption>'
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def heat_map(maps: Mapping[str, Mapping[str, Mapping[int, tuple[str, float]]]]) -> str:
    """Figures of layers as colours, on one scale (logarithmic) over all maps.

    Args:
        maps: by title, by kind of layer, by number of the block: full name and figure, a share above 0.
    """
    values = [value for kinds in maps.values() for cells in kinds.values() for _, value in cells.values() if value > 0]
    if not values:
        return ""
    low, high = math.log(min(values)), math.log(max(values))
    drawn = []
    for title, kinds in maps.items():
        columns = 1 + max(column for cells in kinds.values() for column in cells)
        figures = columns <= NUMBERED
        rows = []
        for kind, cells in kinds.items():
            rows.append(f'<b class="name">{escape(kind)}</b>')
            for column in range(columns):
                name, value = cells.get(column, ("", 0.0))
                if value <= 0:
                    rows.append("<i></i>")
                    continue
                heat = _share(math.log(value), (low, high))
                text = f"{100 * value:.2g}" if figures else ""
                hot = ' class="hot"' if heat > 0.7 else ""
                tip = f"{name}: {value:.2%}"
                rows.append(f'<i{hot} style="--v:{100 * heat:.0f}%" title="{escape(tip)}">{text}</i>')
        step = max(1, math.ceil(columns / 12))
        numbers = "".join(f"<span>{column if column % step == 0 else ''}</span>" for column in range(columns))
        drawn.append(
            f"<figure><figcaption><b>{escape(title)}</b>"
            f'<span class="axis">{"% of the output moved, " if figures else ""}by block</span></figcaption>'
            f'<div class="heat" style="--n:{columns}">{"".join(rows)}<span></span>{numbers}</div></figure>'
        )
    steps = "".join(f'<i style="--v:{100 * step / 8:.0f}%"></i>' for step in range(9))
    key = f'<p class="key-bar"><span>{min(values):.2%}</span>{steps}<span>{max(values):.2%}</span></p>'
    return f'<div class="heats">{"".join(drawn)}</div>{key}'


def _figure(value: float) -> str:
    """A tick's text, short also where it is small or large."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.3g}" if abs(value) < 1000 else f"{value / 1000:.3g}k"


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    keys = (f'<span class="key" style="--c:{_colour(i)}">{escape(name)}</span>' for i, name in enumerate(names))
    return f'<span class="legend">{"".join(keys)}</span>'


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _share(value: float, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return 0.5 if high == low else (value - low) / (high - low)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _fewer(points: Curve) -> Curve:
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / MOST_POINTS)
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]


def _running_mean(points: Curve) -> Curve:
    half = max(1, len(points) // 24)
    means = []
    for index, (x, _) in enumerate(points):
        # The same number of neighbours on both sides, so that the ends are not pulled inwards.
        reach = min(half, index, len(points) - 1 - index)
        near = [y for _, y in points[index - reach : index + reach + 1]]
        means.append((x, sum(near) / len(near)))
    return means


def _ticks(low: float, high: float, *, whole: bool = False, count: int = 4) -> list[float]:
    """Round numbers that span the range."""
    if high <= low:
        high = low + (1.0 if low == 0 else abs(low))
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
