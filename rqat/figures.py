"""Numbers as people read them."""

from __future__ import annotations


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


def percent(share: float) -> str:
    """A share as a percentage: "94.7 %"."""
    return f"{100 * share:.1f} %"
