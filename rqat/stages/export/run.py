"""Writes a quantized model in a format that servers load, and reads it back to prove it is the same model.

    <step>/model/
      config.json (with quantization_config), generation_config.json, tokenizer files, README.md
      model.safetensors, or numbered shards and an index
      or whatever else the format is made of

Two checks follow, on the files; see `rqat.model.exported`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rqat_kernels.dispatch import one_thread

from ...contracts import Exporter
from ...errors import ModelError, PluginError, RqatError
from ...job import Job, Progress, log
from ...model.exported import check_layers, check_logits
from ...model.hub import resolve
from ...model.layers import EMBEDDING
from ...model.reader import CheckpointReader
from ...model.transforms import load_transforms
from ...registry import Card
from ...stage import Step
from ...storage import read_json, write_text
from .. import stages
from ..budget import FILE as CHOSEN
from ..budget import Budget
from .card import model_card
from .told import CARD, licence_of, told

SMALL = (".json", ".md", ".jinja", ".txt")
"""Endings of files beside the weights."""


INSTALL = "Install the versions of transformers and its helpers that rqat's own requirements name."


def run(job: Job, step: Step) -> dict[str, Any]:
    """Exports the model of the step's `start`; see `export_checkpoint`. A budget that is exceeded is told."""
    found = export_checkpoint(
        job.result_of(step.inputs["start"]),
        job.workdir(step) / "model",
        job.make(step, "exporter"),
        step.parts["exporter"].card,
        base=job.plan.model.path,
        device=job.device,
        progress=job.progress,
        written=job.ahead.begin,
    )
    for chosen in (other for other in job.plan.steps if other.stage == Budget.name):
        tell_excess(found, read_json(job.result_of(chosen.name) / CHOSEN)["budget"])
    return found


def tell_excess(found: Mapping[str, Any], budget: int) -> None:
    """Warns of an exported file that takes more than a budget of bytes."""
    if found["bytes"] > budget:
        text = "'%s' takes %.2fMB, more than the budget of %.2fMB, which did not count all that this format stores."
        log.warning(text, found["format"], found["bytes"] / 1e6, budget / 1e6)


def tell(job: Job, step: Step, summary: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Writes into the card of a finished export what its run has found; contents of summary.json and plan.json."""
    path = job.result_of(step.name) / stages()[step.stage].card
    try:
        base = resolve(job.plan.model)
    except RqatError:  # it was moved meanwhile
        base = None
    text = path.read_text(encoding="utf-8")
    write_text(path, told(text, variant=step.variant, summary=summary, plan=plan, licence=licence_of(base)))


def export_checkpoint(
    start: Path,
    folder: Path,
    exporter: Exporter,
    card: Card,
    *,
    base: str,
    device: str,
    progress: Progress,
    written: Callable[[Path], None] = lambda path: None,
) -> dict[str, Any]:
    """Writes the quantized checkpoint in `start` into `folder`, which is emptied before, and checks what was written.

    Args:
        card: the exporter's.
        base: what the model before quantization is called, for the README.md.
        device: "cpu" or "cuda": where logits are compared.
        written: told of each file of weights before it is checked; nothing changes it any more.

    Returns:
        format, bytes, number of layers, layers left as they were, and the outcome of both checks.

    Raises:
        ModelError: the format cannot hold a layer, or transformers does not load the result.
        PluginError: a layer does not decode to what was exported, or nothing was written.
        NumericsError: the loaded model is not the one in memory.
    """
    reader = CheckpointReader(start, unpacked=() if card.embedding else (EMBEDDING,))
    for problem in exporter.options.check(reader.context):
        if problem.level == "error":
            raise ModelError(problem.text, hint=problem.hint)
    hooked = [one.name for one in load_transforms(start) if one.hooked()]
    if hooked:
        raise ModelError(
            f"the model was made with {', '.join(hooked)}, whose forward hooks no checkpoint format holds.",
            hint="Leave `export` out: `rqat eval` and `rqat generate` take the step's own folder.",
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with progress.task(f"export {card.name}", len(reader.layers)) as bar:
        reader.progress = bar.update
        with one_thread():
            exporter.write(folder, reader, reader.layers)
    weights = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in SMALL]
    if not weights:
        raise PluginError(
            f"exporter '{card.name}' wrote no weights into '{folder}'.", hint="Report this to the plugin's author."
        )
    for path in weights:
        written(path)
    for name, scheme in reader.unpacked.items():
        log.warning("'%s' packs no embedding: %s, quantized to %s, is written in 16 bits.", card.name, name, scheme)
    count = sum(path.stat().st_size for path in weights)
    write_text(folder / CARD, model_card(base, reader, card.name, exporter, count))
    with one_thread():
        decoded = check_layers(folder, exporter, card.name, reader)
    facts: dict[str, Any] = {
        "format": card.name,
        "scheme": ", ".join(map(str, dict.fromkeys(reader.layers.values()))),
        "layers": len(reader.layers),
        "left_as_they_were": reader.skipped,
        "in_16_bits": list(reader.unpacked),
        "float32_tensors": sum(reader.dtype(name) == torch.float32 for name in reader.names),
        "bytes": count,
        "bits_per_parameter": round(8 * count / reader.parameters, 4),
        "decoded": decoded,
    }
    theirs = f"The format comes with {card.owner} {card.version}: report this to the plugin's author."
    hint = INSTALL if card.owner == "rqat" else theirs
    return facts | check_logits(folder, exporter, reader, device, hint=hint, every_block=card.owner != "rqat")
