"""KEY=VALUE arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import RqatError


def pairs(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """`["damp=0.01"]` as a mapping; values are read as YAML, so that numbers are numbers.

    Raises:
        RqatError: one has no `=`, or the value is not YAML.
    """
    from ..yaml_lines import parse_value

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise RqatError(f"{flag}: '{text}' is not KEY=VALUE.", hint=f"Write {flag} KEY=VALUE.")
        found[key.strip()] = parse_value(value, f"{flag} {key.strip()}")
    return found
