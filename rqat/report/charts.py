"""Charts as inline SVG: intervals, curves over steps, curves over layers. Colours are variables of `style.css`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 10.0, 10.0, 26.0
COLOURS = 6
"""Number of series colours in `style.css`; further series start again."""

MOST_POINTS = 400
"""A curve with more points is averaged over equal pieces."""

Curve = Sequence[tuple[float, float]]


def interval(low: float, middle: float, high: float, colour: int = 0) -> str:
    """A share with its interval, on a line from 0 to 1."""
    x = [6 + 148 * min(max(value, 0.0), 1.0) for value in (low, middle, high)]
    label = f"{middle:.1%}, 95 % interval {low:.1%} to {high:.1%}"
    return (
        f'<svg class="interval" viewBox="0 0 160 18" role="img" aria-label="{label}"><title>{label}</title>'
        '<path class="grid" d="M6 9H154M6 5V13M80 7V11M154 5V13"/>'
        f'<g style="--c:{_colour(colour)}"><path class="whisker" d="M{x[0]:.1f} 9H{x[2]:.1f}"/>'
        f'<circle class="dot" cx="{x[1]:.1f}" cy="9" r="4.5"/></g></svg>'
    )


def curves(
    series: Mapping[str, Curve], *, title: str, x_label: str, smooth: bool = False, percent: bool = False
) -> str:
    """Lines over a common x axis; the y axis starts at 0 unless a value is negative.

    Args:
        series: points by name, x ascending; points that are not finite are left out.
        smooth: draw the points faintly and a running mean over them.
        percent: y values are shares.
    """
    finite = {name: _fewer([p for p in points if math.isfinite(p[1])]) for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    points = [point for each in finite.values() for point in each]
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points), whole=True)
    y_ticks = _ticks(min(0.0, min(y for _, y in points)), max(y for _, y in points))
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
        text = f"{tick:.3g}" if not percent else f"{100 * tick:.3g} %"
        parts.append(f'<path class="grid" d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x_ticks:
        if x_range[0] <= tick <= x_range[1]:
            x = place((tick, y_range[0]))[0]
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8:.0f}" text-anchor="middle">{tick:g}</text>')
    for number, line in enumerate(finite.values()):
        style = f'style="--c:{_colour(number)}"'
        drawn = _path([place(point) for point in line])
        if smooth and len(line) > 8:
            mean = _path([place(point) for point in _running_mean(line)])
            parts.append(f'<path class="faint" {style} d="{drawn}"/><path class="line" {style} d="{mean}"/>')
        else:
            parts.append(f'<path class="line" {style} d="{drawn}"/>')
        if len(line) <= 40 and not smooth:
            parts += [f'<circle class="dot" {style} cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in map(place, line)]
    return (
        f"<figure><figcaption>{escape(title)}{_legend(list(finite))}"
        f'<span class="axis">{escape(x_label)}</span></figcaption>'
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


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
