"""The model -> a quantized model, without training: codes, scales and zero points of every chosen layer.

<step>/    a checkpoint (see model/checkpoint.py), and layers.json with one entry per layer
<step>.partial/.resume/    finished blocks, until the step is published
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import Tensor

from ...contracts import Quantizer, Transform
from ...job import Job
from ...model.activations import TokenBatch
from ...model.block_store import LayerReport
from ...model.blocks import UNSEEN, quantize_model
from ...model.checkpoint import keep_generation_settings
from ...model.config import read_config
from ...model.families import layout_of
from ...model.finished import write_finished
from ...model.load import open_model
from ...model.memory import keep_freed
from ...model.repeatable import repeatable_attention
from ...model.streaming import Streamed
from ...model.transforms import Applied, apply_transforms
from ...scheme import Scheme, Schemes
from ...stage import Step
from ...storage import read_json, write_json
from ..budget import FILE as CHOSEN
from ..budget import Budget
from ..calibrate.run import CALIBRATION_FILE
from . import TOKENS_AT_ONCE, QuantizeKeys, needs_whole_model

if TYPE_CHECKING:
    import transformers

log = logging.getLogger("rqat")

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\..*")
"""Full name of a layer of an expert."""


def run(job: Job, step: Step) -> dict[str, Any]:
    """Quantizes the plan's model with the step's quantizer.

    Returns:
        number of layers, stored bits per weight, bits per parameter in all and bytes of the whole model, mean and worst
        error, notes, layers left as they were, seconds.

    Raises:
        RqatError: see `load_model` and `quantize_model`.
    """
    keys = step.settings
    assert isinstance(keys, QuantizeKeys)
    work = job.workdir(step)
    start = time.perf_counter()
    keep_freed()
    quantizer: Quantizer = job.make(step, "quantizer")
    weights, tokenizer, transforms = _opened(job, step, quantizer)
    model = weights.model
    batches = []
    if quantizer.needs and "calibration" in step.inputs:
        batches = token_batches(job.result_of(step.inputs["calibration"]) / CALIBRATION_FILE, job.device)
    kept = job.scratch(step)
    kept.mkdir(exist_ok=True)
    blocks = model.config.num_hidden_layers
    with job.progress.task(f"quantize {step.variant}", blocks) as bar, repeatable_attention(job.device):
        layers, reports = quantize_model(
            weights,
            batches,
            quantizer,
            chosen_schemes(job, step),
            skip=keys.skip,
            indivisible=keys.indivisible,
            progress=lambda done, _: bar.update(done),
            resume_dir=kept,
        )
    write_finished(work, weights, tokenizer, layers, kept, transforms, written=job.ahead.begin)
    keep_generation_settings(read_config(job.plan.model, offline=job.offline).fetch(offline=job.offline), work)
    write_json(work / "layers.json", [entry_of(report) for report in reports])
    notes = {report.name: report.note for report in reports if report.note}
    for line in told_notes(notes):
        log.warning("%s", line)
    left = sum(name not in layers for name in layout_of(model.config).layer_names(blocks))
    if left:
        log.warning("%d linear layers were left as they are.", left)
    sizes = size_of(reports, sum(parameter.numel() for parameter in model.parameters()))
    return summary(reports) | sizes | {"left": left, "notes": notes, "seconds": round(time.perf_counter() - start, 1)}


def _opened(
    job: Job, step: Step, quantizer: Quantizer
) -> tuple[Streamed, transformers.PreTrainedTokenizerBase, list[Applied]]:
    """The plan's model behind the step's transforms, and its tokenizer; read block by block where nobody needs all."""
    if not needs_whole_model(step, quantizer.needs):
        return *open_model(job.plan.model, device=job.device, offline=job.offline), []
    model, tokenizer = job.original.copied(job.plan.model, device=job.device, offline=job.offline)
    transforms = apply_transforms(model, list(transforms_of(job, step)))  # before: one may untie the head
    return Streamed(model), tokenizer, transforms


def chosen_schemes(job: Job, step: Step) -> Schemes:
    """The plan's schemes; with a budget, those that were chosen."""
    if Budget.name not in step.inputs:
        return job.plan.scheme
    return named_schemes(job.plan.scheme.default, read_json(job.result_of(step.inputs[Budget.name]) / CHOSEN)["layers"])


def named_schemes(default: Scheme, layers: Mapping[str, str]) -> Schemes:
    """Schemes that name every layer, by full name and spelling, as a budget has chosen them."""
    return Schemes(default=default, patterns=tuple((name, Scheme.parse(text)) for name, text in layers.items()))


def transforms_of(job: Job, step: Step) -> Iterator[tuple[str, dict[str, Any], Transform]]:
    """Name, options and object of every transform that stands before the quantizer, in order."""
    for role, use in step.parts.items():
        if role.startswith("transform"):
            yield use.card.full_name, use.options.model_dump(mode="json"), job.make(step, role)


def told_notes(notes: Mapping[str, str]) -> Iterator[str]:
    """Notes of layers, a line each; of experts that saw no token, a line for each block, since there may be thousands.

    Args:
        notes: by full name of the layer.
    """
    unseen: dict[str, dict[str, None]] = {}
    for name, note in notes.items():
        expert = EXPERT.fullmatch(name)
        if note == UNSEEN and expert:
            unseen.setdefault(expert[1], {})[expert[2]] = None
        else:
            yield f"{name}: {note}"
    for block, numbers in unseen.items():
        yield f"{block} {', '.join(numbers)}: {UNSEEN}"


def entry_of(report: LayerReport) -> dict[str, Any]:
    """A report without its wall time, so that two runs write the same bytes."""
    return {key: value for key, value in asdict(report).items() if key != "seconds"}


def summary(reports: list[LayerReport]) -> dict[str, Any]:
    """Figures over all layers; `error` is the mean over layers, `worst` the layer with the largest."""
    weights = [report.out_features * report.in_features for report in reports]
    bits = sum(report.bits * weight for report, weight in zip(reports, weights, strict=True)) / sum(weights)
    errors = {report.name: report.error for report in reports if report.error is not None}
    worst = max(errors, key=lambda name: errors[name]) if errors else None
    return {
        "layers": len(reports),
        "weights": sum(weights),
        "bits_per_weight": round(bits, 4),
        "error": sum(errors.values()) / len(errors) if errors else None,
        "worst": {"layer": worst, "error": errors[worst]} if worst else None,
    }


def size_of(reports: list[LayerReport], parameters: int) -> dict[str, Any]:
    """Bits per parameter in all, and bytes, of a model with so many parameters; what is not quantized has 16 bits."""
    weights = [report.out_features * report.in_features for report in reports]
    packed = sum(report.bits * weight for report, weight in zip(reports, weights, strict=True))
    bits = packed + 16 * (parameters - sum(weights))
    return {"bits_per_parameter": round(bits / parameters, 4), "bytes": round(bits / 8)}


def token_batches(path: Path, device: str) -> list[TokenBatch]:
    """The sequences of a calibrate step in batches."""
    tensors = load_file(path)
    return batches_of(tensors["input_ids"], tensors["attention_mask"], device)


def batches_of(input_ids: Tensor, mask: Tensor, device: str) -> list[TokenBatch]:
    """Sequences `(N, T)` in batches, each cut to its longest; one without padding has no mask."""
    input_ids, mask = input_ids.long(), mask.bool()
    size = max(1, TOKENS_AT_ONCE[device.partition(":")[0]] // input_ids.shape[1])
    batches = []
    for ids, real in zip(input_ids.split(size), mask.split(size), strict=True):
        longest = int(real.sum(1).max())
        ids, real = ids[:, :longest], real[:, :longest]
        batches.append(TokenBatch(ids, None if bool(real.all()) else real))
    return batches
