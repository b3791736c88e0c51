"""Every width of every layer is tried, each as if it were the only one that is quantized, and what it costs is noted.

<step>/costs.json    {"units": [{"layers": [...], "kl": {width: nats per token}}]}; see `rqat.model.sensitivity`
<step>.partial/.resume/    every layer in every width (`rqat.model.tries`) and the costs found so far, until the step is
                           published
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...budget import UNQUANTIZED, Offer, Unit, at_width
from ...contracts import Quantizer, Row, Source
from ...errors import DataError
from ...job import Job, Progress
from ...model.activations import TokenBatch
from ...model.layers import ENDS
from ...model.load import load_tokenizer
from ...model.repeatable import repeatable_attention
from ...model.sensitivity import measure
from ...model.transforms import apply_transforms
from ...model.tries import try_widths
from ...scheme import Schemes
from ...stage import Step
from ...storage import write_json
from ..budget.weigh import offered_of, weighed
from ..calibrate.run import CALIBRATION_FILE, Counted, pad, padding_id, sequences_of
from ..quantize.run import batches_of, token_batches, transforms_of
from . import FILE, MeasureSettings

if TYPE_CHECKING:
    import transformers


def run(job: Job, step: Step) -> dict[str, Any]:
    """Tries and measures.

    Returns:
        how many layers were tried, the sequences they were measured on, seconds.

    Raises:
        DataError: the source has no rows behind those of the calibration.
        RqatError: see `load_model` and `try_widths`.
    """
    keys = step.settings
    assert isinstance(keys, MeasureSettings)
    start = time.perf_counter()
    source: Source = job.make(step, "source")
    tokenizer = load_tokenizer(job.plan.model, offline=job.offline)
    text = held_out(source.rows(keys.split, keys.seed), tokenizer, keys, job.device)  # type: ignore[arg-type]
    model = prepared(job, step)
    for later in job.plan.steps:
        if later.inputs.get(step.stage) == step.name:  # before hours of measuring what cannot be had
            weighed(job, later, model)
    quantizer: Quantizer = job.make(step, "quantizer")
    batches = []
    if quantizer.needs:
        batches = token_batches(job.result_of(step.inputs["calibration"]) / CALIBRATION_FILE, job.device)
    kept = job.scratch(step)
    kept.mkdir(exist_ok=True)
    offered = offered_of(job.plan.scheme, keys, model)
    costs = costs_of(
        model, offered, job.plan.scheme, quantizer, keys, batches, text, kept, device=job.device, progress=job.progress
    )
    entries = [
        {"layers": list(unit), "kl": {str(bits): kl for bits, kl in sorted(own.items())}} for unit, own in costs.items()
    ]
    write_json(job.workdir(step) / FILE, {"units": entries})
    return {
        "layers": sum(map(len, costs)),
        "sequences": keys.samples,
        "seconds": round(time.perf_counter() - start, 1),
    }


def costs_of(
    model: transformers.PreTrainedModel,
    offered: Offer,
    scheme: Schemes,
    quantizer: Quantizer,
    keys: MeasureSettings,
    batches: Sequence[TokenBatch],
    text: Sequence[TokenBatch],
    kept: Path,
    *,
    device: str,
    progress: Progress,
) -> dict[Unit, dict[int, float]]:
    """Nats per token that every width of every unit would cost, if it were the only one that is quantized.

    Args:
        model: as it is before quantization, behind its transforms; it is left so. Not to be trained.
        scheme: its default says group, zero points and grid.
        batches: what the quantizer's statistics are taken from; none where it needs none.
        text: see `held_out`.
        kept: existing folder of what was tried and found so far, from which an interrupted measuring goes on.

    Raises:
        RqatError: see `try_widths`.
    """
    schemes = {
        bits: at_width(scheme, bits, [name for name in ENDS if name in known])
        for bits, known in offered.by_width.items()
        if bits != UNQUANTIZED
    }
    chooses = {"skip": keys.skip, "indivisible": keys.indivisible}
    blocks = model.config.num_hidden_layers
    with progress.task("try every width", blocks) as bar, repeatable_attention(device):
        tries = try_widths(
            model,
            batches,
            quantizer.layerwise,
            schemes,
            kept,
            chooses=chooses,
            progress=lambda share: bar.update(blocks * share),
        )
    with progress.task("measure every width", 100) as bar, repeatable_attention(device):
        return measure(
            model,
            offered.units,
            text,
            tries,
            offered.widths,
            kept / FILE,
            progress=lambda share: bar.update(100 * share),
        )


def prepared(job: Job, step: Step) -> transformers.PreTrainedModel:
    """The plan's model behind a step's transforms, as the quantizer is going to see it; not to be trained."""
    model, _ = job.original.copied(job.plan.model, device=job.device, offline=job.offline)
    apply_transforms(model, list(transforms_of(job, step)))
    return model.requires_grad_(False)


def held_out(
    rows: Iterable[Row], tokenizer: transformers.PreTrainedTokenizerBase, keys: MeasureSettings, device: str
) -> list[TokenBatch]:
    """Sequences behind those that calibrate, on which costs are measured.

    Args:
        rows: of the calibration's source, from the first on.

    Raises:
        DataError: there are too few.
    """
    every = sequences_of(Counted(rows), tokenizer, keys.tokens, pack=keys.pack)
    found = list(itertools.islice(every, keys.behind, keys.behind + keys.samples))
    if len(found) < keys.samples:
        raise DataError(
            f"budget.samples: {keys.samples} sequences behind the {keys.behind} of the calibration were asked for; "
            f"its source has {len(found)}.",
            hint="Ask for fewer (budget.samples, calibration.samples, calibration.tokens) or add data.",
        )
    return batches_of(*pad(found, padding_id(tokenizer)), device)
