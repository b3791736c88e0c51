"""A file of JSON lines that grows batch by batch, and of which whole batches outlive an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any


def add(path: Path, lines: Iterable[str]) -> None:
    """Puts lines, their ends included, behind those that are there, and on the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def whole_batches(path: Path, prompts: int, together: int, n: int) -> int:
    """Cuts a file off behind its last whole batch; how many prompts those have answered."""
    if not path.is_file():
        return 0
    there = len(lines_of(path)) // n
    whole = there if there == prompts else there // together * together
    kept = b"".join(islice(path.read_bytes().splitlines(keepends=True), whole * n))
    if len(kept) < path.stat().st_size:
        path.write_bytes(kept)
    return whole


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file up to the first that was cut off."""
    found = []
    for text in _ended(path.read_bytes().splitlines(keepends=True)):
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found


def _ended(lines: Iterable[bytes]) -> Iterator[bytes]:
    return (line for line in lines if line.endswith(b"\n"))
