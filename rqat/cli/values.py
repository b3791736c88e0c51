"""KEY=VALUE arguments, and parts written in one word with their options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..contracts.data import spelled_source
from ..errors import RqatError


def pairs(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """`["damp=0.01"]` as a mapping; values are read as YAML, so that numbers are numbers.

    Raises:
        RqatError: one has no `=`, or the value is not YAML.
    """
    from ..yaml_lines import given_value

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise RqatError(f"{flag}: '{text}' is not KEY=VALUE.", hint=f"Write {flag} KEY=VALUE.")
        found[key.strip()] = given_value(value, f"{flag} {key.strip()}")
    return found


def source(text: str, flag: str) -> dict[str, Any]:
    """`NAME`, `NAME:KEY=VALUE,...` or the path of a file, as the mapping of a source.

    Raises:
        RqatError: see `pairs`.
    """
    if Path(text).exists() or ":" not in text:
        return dict(spelled_source({"source": text}))
    name, options = with_options(text, flag)
    return {"source": name} | options


def with_options(text: str, flag: str) -> tuple[str, dict[str, Any]]:
    """`NAME`, or `NAME:KEY=VALUE,...`, as a name and its options.

    Raises:
        RqatError: see `pairs`.
    """
    name, _, rest = text.partition(":")
    # Not at the commas within brackets: `steps=[1, 4]`, `fields={prompt: question, completion: answer}`.
    options = re.findall(r"(?:\[[^\]]*\]|\{[^}]*\}|[^,])+", rest)
    return name, pairs([option.strip() for option in options], flag)
