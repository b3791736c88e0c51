"""Reads what a run has left in its folder: its plan, its finished steps, and how far an unfinished one has come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from ..intact import read_manifest
from ..run_folder import finished_steps
from ..run_lock import is_held
from ..stage import BASE
from ..stages import stages
from ..storage import PARTIAL, is_name, read_json, read_json_lines
from .planned import planned, read_plan

if TYPE_CHECKING:
    from ..job import Job

TRAINING = "training.jsonl"

SCORE = ("accuracy", "low", "high", "n", "seconds")
"""Figures that every evaluation has; a stranger's file may lack them."""


@dataclass
class StepFiles:
    """A step: its folder and, where it is finished, its manifest.

    Attributes:
        facts: what decided the result.
        results: what the stage returned.
        start: variant of the model it started from; "" for the one before quantization, or none.
    """

    name: str
    folder: Path
    stage: str
    variant: str
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    start: str = ""

    def rows(self, file: str) -> list[dict[str, Any]]:
        """A JSON-lines file of this step; empty when it is not there, and up to the first damaged line."""
        return read_json_lines(self.folder / file)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Rows of samples.jsonl that can be shown and compared."""
        return usable_samples(self.rows("samples.jsonl"))

    @property
    def distances(self) -> list[dict[str, Any]]:
        """Rows of samples.jsonl of a task that compares a model with its original; none where the file is not whole."""
        rows = [row for row in self.rows("samples.jsonl") if is_number(row.get("tokens"))]
        whole = len(rows) == self.results.get("n") and all(
            map(is_number, (one for row in rows for one in row.values()))
        )
        return rows if whole else []

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Entries of layers.json that tell of a quantized layer; none where there is no such file."""
        found = read_json(self.folder / "layers.json")
        rows = found if isinstance(found, list) else []
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("name"), str)]


def usable_samples(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a samples.jsonl that can be shown and compared; others, which no evaluation writes, are left out."""
    kinds: dict[str, Any] = {"index": int, "verdict": str, "prompt": str, "completion": str | None}
    return [row for row in rows if all(key in row and isinstance(row[key], kind) for key, kind in kinds.items())]


@dataclass
class RunFiles:
    """A run: its plan, its finished steps in order, and those that were begun.

    Attributes:
        recipe: with every default filled in.
        plan: see `planned.py`.
        begun: steps that are being done, or were when the run ended.
        running: whether a process is at work in the folder.
        seen: when that was so, UTC; None of a run that writes its last report.
    """

    folder: Path
    name: str
    scheme: str
    recipe: dict[str, Any]
    device: str
    steps: list[StepFiles] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    begun: list[StepFiles] = field(default_factory=list)
    running: bool = False
    seen: datetime | None = None

    @property
    def start(self) -> str:
        """Variant of the quantizer whose result is trained."""
        return next((step.variant for step in self.steps if _makes_model(step)), "")

    def before(self, variant: str) -> str:
        """Variant of the model that a trained one started from; "" where there is none."""
        made = (step.start for step in self.steps if step.variant == variant and _makes_model(step))
        return next(made, "")

    def furthest(self, variants: Iterable[str]) -> str:
        """Of these models the last that the run came to; one that is only compared with is none of its steps."""
        names = list(variants)
        own = [name for name in names if name in (BASE, self.start) or self.before(name)]
        return (own or names)[-1] if names else ""

    @property
    def variants(self) -> list[str]:
        """Every model of the run, the one before quantization first: the order of their colours."""
        evaluated = [step.variant for step in self.evaluations]
        made = [step.variant for step in [*self.steps, *self.begun] if _makes_model(step)]
        return list(dict.fromkeys([BASE, *evaluated, *made]))

    @property
    def evaluations(self) -> list[StepFiles]:
        """The steps that found how well a model does on a task."""
        return [step for step in self.steps if isinstance(step.results.get("task"), str) and _has(step.results, SCORE)]

    @property
    def tasks(self) -> dict[str, list[StepFiles]]:
        """The evaluations by task; those of one name whose prompts differ are "arith" and "arith (2)"."""
        found: dict[str, list[StepFiles]] = {}
        asked: dict[str, Any] = {}
        for step in self.evaluations:
            task, prompts = str(step.results["task"]), step.results.get("prompt_hash")
            labels = (task if number == 1 else f"{task} ({number})" for number in count(1))
            label = next(label for label in labels if asked.setdefault(label, prompts) == prompts)
            found.setdefault(label, []).append(step)
        return found

    @property
    def comparisons(self) -> list[StepFiles]:
        """The steps that compared a model with its original."""
        told = [step for step in self.steps if isinstance(step.results.get("figures"), dict)]
        return [
            step
            for step in told
            if all(isinstance(step.results.get(key), str) for key in ("task", "data", "rows_hash"))
            and _has(step.results, ("n", "tokens", "seconds"))
        ]

    @property
    def waiting(self) -> list[dict[str, Any]]:
        """Entries of the plan whose steps are not finished."""
        done = {step.name for step in self.steps}
        return [step for step in self.plan.get("steps", ()) if step["name"] not in done]

    def planned(self, name: str) -> dict[str, Any]:
        """What the plan says of a step; empty where it says nothing."""
        return next((step for step in self.plan.get("steps", ()) if step["name"] == name), {})

    def of(self, stage: str) -> list[StepFiles]:
        """The steps of one stage."""
        return [step for step in self.steps if step.stage == stage]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from a file can be drawn and added up."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _has(results: Mapping[str, Any], keys: Iterable[str]) -> bool:
    return all(is_number(results.get(key)) for key in keys)


def _makes_model(step: StepFiles) -> bool:
    stage = stages().get(step.stage)
    return stage is not None and stage.makes_model


def read_run(job: Job) -> RunFiles:
    """Collects the plan's finished steps from the run folder."""
    return _read(job.folder, planned(job))


def read_folder(folder: Path, *, running: bool | None = None) -> RunFiles:
    """The same from the folder alone: of a run that is going on, was stopped, or was made elsewhere.

    Args:
        running: whether it goes on; None: if a process holds the folder's lock.
    """
    found = _read(folder, read_plan(folder))
    found.running = is_held(folder) if running is None else running
    found.seen = datetime.now(UTC)
    return found


def _read(folder: Path, plan: dict[str, Any]) -> RunFiles:
    # A name in a stranger's plan must not lead out of the folder.
    entries = [entry for entry in plan["steps"] if is_name(entry["name"])]
    names = [entry["name"] for entry in entries] or [path.name for path in finished_steps(folder)]
    starts = {entry["name"]: entry["start"] for entry in entries}
    run = RunFiles(
        folder, plan["name"], plan["scheme"], plan["recipe"], plan["device"], plan={**plan, "steps": entries}
    )
    for name in names:
        manifest = read_manifest(folder / name)
        if manifest is not None:
            run.steps.append(
                StepFiles(
                    name=name,
                    folder=folder / name,
                    stage=manifest["stage"],
                    variant=manifest["variant"],
                    seconds=float(manifest["seconds"]),
                    facts=dict(manifest["facts"]),
                    results=dict(manifest["results"]),
                    manifest=dict(manifest),
                    start=starts.get(name, ""),
                )
            )
    if not entries:
        _find_starts(run.steps)
    run.begun = [
        StepFiles(entry["name"], partial, entry["stage"], entry["variant"], start=entry["start"])
        for entry in entries
        if (partial := folder / f"{entry['name']}{PARTIAL}").is_dir() and not (folder / entry["name"]).is_dir()
    ]
    return run


def _find_starts(steps: list[StepFiles]) -> None:
    """What each step started from, by the fingerprints among its facts."""
    variants = {step.manifest["fingerprint"]: step.variant for step in steps}
    for step in steps:
        inputs = step.facts.get("inputs")
        start = inputs.get("start") if isinstance(inputs, dict) else None
        step.start = variants.get(start, "") if isinstance(start, str) else ""
