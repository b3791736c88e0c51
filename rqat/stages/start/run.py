"""Copies a finished step of another run, so that this run has all it needs and the other may go."""

from __future__ import annotations

import shutil
from typing import Any

from ...job import Job
from ...model.checkpoint import keep_generation_settings, load_layers, save_checkpoint
from ...model.hub import QUANTIZED_FILE
from ...model.native import load_quantized
from ...stage import Step
from . import StartKeys

LEFT_BEHIND = frozenset({"manifest.json", "training.jsonl", "layers.json"})
"""What tells of the other run."""


def run(job: Job, step: Step) -> dict[str, Any]:
    """Copies the files of a checkpoint; an exported folder, also one by another tool, becomes one.

    Returns:
        where they came from, and how many layers are quantized.

    Raises:
        ModelError: it is no checkpoint, or damaged.
    """
    keys = step.settings
    assert isinstance(keys, StartKeys)
    source, work = keys.path.path, job.workdir(step)
    if not (source / QUANTIZED_FILE).is_file():
        found = load_quantized(source, device=job.device)
        save_checkpoint(work, found.model, found.tokenizer, found.layers)
        keep_generation_settings(source, work)
        return {"from": str(source), "layers": len(found.layers)}
    layers = load_layers(source / QUANTIZED_FILE)
    files = [path for path in sorted(source.iterdir()) if path.is_file() and path.name not in LEFT_BEHIND]
    with job.progress.task(f"start from {step.variant}", len(files)) as bar:
        for number, path in enumerate(files, 1):
            shutil.copyfile(path, work / path.name)
            bar.update(number)
    return {"from": str(source), "layers": len(layers)}
