"""Reads what the finished steps of a run left in its folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..intact import read_manifest
from ..stages import stages
from ..storage import read_json_lines

if TYPE_CHECKING:
    from ..job import Job


@dataclass
class StepFiles:
    """A finished step: its folder and its manifest.

    Attributes:
        facts: what decided the result.
        results: what the stage returned.
        start: variant of the model it started from; "" for the one before quantization, or none.
    """

    name: str
    folder: Path
    stage: str
    variant: str
    seconds: float
    facts: dict[str, Any]
    results: dict[str, Any]
    manifest: dict[str, Any]
    start: str = ""

    def rows(self, file: str) -> list[dict[str, Any]]:
        """A JSON-lines file of this step; empty when it is not there, and up to the first damaged line."""
        return read_json_lines(self.folder / file)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Rows of samples.jsonl that can be shown and compared."""
        return usable_samples(self.rows("samples.jsonl"))


def usable_samples(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a samples.jsonl that can be shown and compared; others, which no evaluation writes, are left out."""
    kinds: dict[str, Any] = {"index": int, "verdict": str, "prompt": str, "completion": str | None}
    return [row for row in rows if all(key in row and isinstance(row[key], kind) for key, kind in kinds.items())]


@dataclass
class RunFiles:
    """A run: its recipe and its finished steps in order.

    Attributes:
        recipe: with every default filled in.
        start: variant of the quantized model that training starts from.
    """

    folder: Path
    name: str
    scheme: str
    recipe: dict[str, Any]
    device: str
    steps: list[StepFiles] = field(default_factory=list)

    @property
    def start(self) -> str:
        """Variant of the quantizer whose result is trained."""
        return next((step.variant for step in self.steps if stages()[step.stage].makes_model), "")

    def before(self, variant: str) -> str:
        """Variant of the model that a trained one started from; "" where there is none."""
        made = (step.start for step in self.steps if step.variant == variant and stages()[step.stage].makes_model)
        return next(made, "")

    @property
    def evaluations(self) -> list[StepFiles]:
        """The steps that found how well a model does on a task."""
        return [step for step in self.steps if {"task", "accuracy"} <= step.results.keys()]

    @property
    def comparisons(self) -> list[StepFiles]:
        """The steps that compared a model with its original."""
        return [step for step in self.steps if {"task", "figures"} <= step.results.keys()]

    def of(self, stage: str) -> list[StepFiles]:
        """The steps of one stage."""
        return [step for step in self.steps if step.stage == stage]


def read_run(job: Job) -> RunFiles:
    """Collects the plan's finished steps from the run folder."""
    recipe = job.plan.recipe
    steps = []
    variants = {step.name: step.variant for step in job.plan.steps}
    for step in job.plan.steps:
        folder = job.result_of(step.name)
        manifest = read_manifest(folder)
        if manifest is not None:
            steps.append(
                StepFiles(
                    name=step.name,
                    folder=folder,
                    stage=manifest["stage"],
                    variant=manifest["variant"],
                    seconds=float(manifest["seconds"]),
                    facts=dict(manifest["facts"]),
                    results=dict(manifest["results"]),
                    manifest=dict(manifest),
                    start=variants.get(step.inputs.get("start", ""), ""),
                )
            )
    return RunFiles(job.folder, recipe.name, str(job.plan.scheme), recipe.model_dump(mode="json"), job.device, steps)
