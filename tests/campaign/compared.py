"""What a run folder holds, to be compared: all that a process can find there, or all but what the clock has written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rqat.pipeline import OWN_FILES
from rqat.stages.export import Export

CLOCKS = frozenset({"memory", "seconds", "started", "train_seconds", "stamps", "tokens_per_s", "summary"})
"""Keys whose values are times, digests of some, or what the machine had free."""


def state_of(folder: Path) -> str:
    """A digest of all that a process can find in a folder: names, times and bytes."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_file():
            digest.update(f"{path.stat().st_mtime_ns}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def contents(folder: Path) -> dict[str, Any]:
    """What a run folder holds, file by file, without what the clock has written."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    } | {f"{path.relative_to(folder)}/": "" for path in folder.rglob("*") if path.is_dir()}


def before_its_end(found: dict[str, Any]) -> dict[str, Any]:
    """What a run folder holds before its last step is done: without the run's own files, and a model card, which tell
    of all that was done when a command ended.
    """
    return {
        name: content
        for name, content in found.items()
        if name not in OWN_FILES and ".partial/" not in name and not name.endswith(f"/{Export.card}")
    }


def _content(path: Path) -> Any:
    if path.suffix == ".html":  # all it shows is in the other files, and so are times
        return ""
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: sorted(inner) if key == "files" else _timeless(inner)
            for key, inner in value.items()
            if key not in CLOCKS
        }
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value
