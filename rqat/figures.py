"""Numbers and lists as people read them."""

from __future__ import annotations

import re
from collections.abc import Sequence


def few(names: Sequence[str], most: int = 3, kind: str = "") -> str:
    """The first of some names, and how many more there are: "a, b, c and 4 more layers"."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more {kind}".rstrip() if rest > 0 else "")


def size(count: float) -> str:
    """Bytes in the unit that fits: "812 MB", "1.4 GB" (powers of ten)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def seconds(value: float) -> str:
    """A duration: "4.2 s", "3 min 05 s", "2 h 10 min"."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def roughly(value: float) -> str:
    """A duration that is only about so long: "40 s", "3 min", "2 h 10 min"."""
    if value < 90:
        return f"{max(1, round(value))} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(value: float) -> str:
    """A duration where room is short: "0:07", "1:43", "2h10"."""
    minutes, rest = divmod(round(value), 60)
    return f"{minutes // 60}h{minutes % 60:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def percent(share: float) -> str:
    """A share as a percentage: "94.7 %"."""
    return f"{100 * share:.1f} %"


def hundredths(share: float) -> str:
    """A share in hundredths, without their sign: "94.7"; what is no share, such as a perplexity, as it is."""
    return f"{100 * share:.1f}" if abs(share) <= 1 else f"{share:.4g}"


def duration_s(text: str) -> float | None:
    """Seconds of a time such as 90s, 15m or 1.5h; None where it is none, or not longer than nothing."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    return (float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] or None) if found else None


def steps_or_duration(value: int | str) -> int | str:
    """A number of steps, or a duration such as 90s, as it was given.

    Raises:
        ValueError: it is neither.
    """
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if number or (isinstance(value, str) and duration_s(value)):
        return value
    raise ValueError("is neither a number of steps nor a time such as 90s, 15m or 1h")
