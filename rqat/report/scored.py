"""Evaluations as they lie in folders: of runs, of their steps, and those that `rqat eval -o` wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..intact import MANIFEST, is_manifest
from ..run_folder import finished_steps, refuse_links
from ..storage import read_json, read_json_lines
from .run_files import is_number, usable_samples

RESULTS, SAMPLES = "results.json", "samples.jsonl"


@dataclass(frozen=True)
class Scored:
    """One evaluation of one model on one task.

    Attributes:
        given: what the user named: a run, a step, or an evaluation's folder.
        folder: of its results.json.
        label: what the model is called.
        samples: rows of its samples.jsonl.
        original: what a model was compared with, as far as it is known; "" of a task with problems.
    """

    given: Path
    folder: Path
    label: str
    results: Mapping[str, Any]
    samples: Sequence[dict[str, Any]] = field(repr=False)
    original: str = ""

    @property
    def task(self) -> str:
        """Its task's name."""
        return str(self.results["task"])

    @property
    def compares(self) -> bool:
        """Whether its task compares a model with its original."""
        return is_comparison(self.results)

    @property
    def asked(self) -> tuple[str, str, str]:
        """What two models must share to be paired: the task, a hash of its prompts or rows, one of its answers."""
        if self.compares:
            return self.task, self.results["rows_hash"], "rows"
        answers = {row["index"]: row.get("answer") for row in self.samples}
        listed = repr([answers[index] for index in sorted(answers)])
        return self.task, str(self.results.get("prompt_hash") or ""), hashlib.sha256(listed.encode()).hexdigest()


def read_scored(path: Path) -> list[Scored]:
    """The evaluations under a path.

    Raises:
        RunError: there are none.
    """
    folder = path.parent if path.name == RESULTS and path.is_file() else path
    refuse_links(folder)
    manifest = read_json(folder / MANIFEST)
    steps = finished_steps(folder)
    if steps:
        found = [_one(path, step, str((read_json(step / MANIFEST) or {}).get("variant", ""))) for step in steps]
    elif is_manifest(manifest):
        found = [_one(path, folder, manifest["variant"])]
    else:
        found = [_one(path, folder, "")]
    there = [one for one in found if one is not None]
    if not there:
        what = "does not exist" if not path.exists() else "holds no evaluation on a task"
        raise RunError(
            f"'{path}' {what}.", hint="Name a run folder, a step in it, or the folder that `rqat eval -o` wrote."
        )
    return there


def _one(given: Path, folder: Path, label: str) -> Scored | None:
    """The evaluation in a folder; None where there is none that gives an accuracy or a distance."""
    results = read_json(folder / RESULTS)
    if not isinstance(results, dict) or not isinstance(results.get("task"), str):
        return None
    compares = is_comparison(results)
    if not compares and not all(is_number(results.get(key)) for key in ("accuracy", "low", "high", "n")):
        return None
    rows = read_json_lines(folder / SAMPLES)
    model = str(results.get("model") or results.get("variant") or folder.name).rstrip("/")
    return Scored(
        given,
        folder,
        label or model.rpartition("/")[2],
        results,
        usable_rows(rows) if compares else usable_samples(rows),
        _original(folder, results) if compares else "",
    )


def _original(folder: Path, results: Mapping[str, Any]) -> str:
    """What a model was compared with: of a step by what it holds, else as `rqat eval` was told."""
    facts = (read_json(folder / MANIFEST) or {}).get("facts")
    if isinstance(facts, dict) and isinstance(facts.get("settings"), dict):
        return json.dumps(facts["settings"].get("original") or facts.get("model"), sort_keys=True)
    return str(results.get("original") or "")


def is_comparison(results: Mapping[str, Any]) -> bool:
    """Whether results.json tells how far a model is from its original."""
    figures = results.get("figures")
    return (
        isinstance(figures, Mapping)
        and bool(figures)
        and all(map(is_number, figures.values()))
        and isinstance(results.get("rows_hash"), str)
        and all(is_number(results.get(key)) for key in ("n", "tokens"))
    )


def usable_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a samples.jsonl that a comparison has written: all their values are numbers."""
    return [dict(row) for row in rows if is_number(row.get("tokens")) and all(map(is_number, row.values()))]
