"""Every width of every layer is tried, each as if it were the only one that is quantized, and what it costs is noted.

<step>/costs.json    {"units": [{"layers": [...], "kl": {width: nats per token}}]}; see `rqat.model.sensitivity`
<step>.partial/.resume/    every layer in every width (`rqat.model.tries`) and the costs found so far, until the step is
                           published
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...budget import UNQUANTIZED, at_width
from ...contracts import Quantizer, Source
from ...errors import DataError
from ...job import Job
from ...model.layers import ENDS
from ...model.load import load_tokenizer
from ...model.repeatable import repeatable_attention
from ...model.sensitivity import measure
from ...model.transforms import apply_transforms
from ...model.tries import try_widths
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
    held_out = batches_of(*_held_out(job, keys, step), job.device)
    model = prepared(job, step)
    for later in job.plan.steps:
        if later.inputs.get(step.stage) == step.name:  # before hours of measuring what cannot be had
            weighed(job, later, model)
    offered = offered_of(job, step, model)
    quantizer: Quantizer = job.make(step, "quantizer").layerwise
    batches = []
    if quantizer.needs:
        batches = token_batches(job.result_of(step.inputs["calibration"]) / CALIBRATION_FILE, job.device)
    kept = job.scratch(step)
    kept.mkdir(exist_ok=True)
    schemes = {
        bits: at_width(job.plan.scheme, bits, [name for name in ENDS if name in known])
        for bits, known in offered.by_width.items()
        if bits != UNQUANTIZED
    }
    chooses = {"skip": keys.skip, "indivisible": keys.indivisible}
    blocks = model.config.num_hidden_layers
    with job.progress.task("try every width", blocks) as bar, repeatable_attention(job.device):
        tries = try_widths(
            model, batches, quantizer, schemes, kept, chooses=chooses, progress=lambda share: bar.update(blocks * share)
        )
    with job.progress.task("measure every width", 100) as bar, repeatable_attention(job.device):
        costs = measure(
            model,
            offered.units,
            held_out,
            tries,
            offered.widths,
            kept / FILE,
            progress=lambda share: bar.update(100 * share),
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


def prepared(job: Job, step: Step) -> transformers.PreTrainedModel:
    """The plan's model behind a step's transforms, as the quantizer is going to see it; not to be trained."""
    model, _ = job.original.copied(job.plan.model, device=job.device, offline=job.offline)
    apply_transforms(model, list(transforms_of(job, step)))
    return model.requires_grad_(False)


def _held_out(job: Job, keys: MeasureSettings, step: Step) -> tuple[Tensor, Tensor]:
    """Sequences of the calibration's source behind those that calibrate: ids and mask, `(N, T)`.

    Raises:
        DataError: there are too few.
    """
    source: Source = job.make(step, "source")
    tokenizer = load_tokenizer(job.plan.model, offline=job.offline)
    counted = Counted(source.rows(keys.split, keys.seed))  # type: ignore[arg-type]
    every = sequences_of(counted, tokenizer, keys.tokens, pack=keys.pack)
    found = list(itertools.islice(every, keys.behind, keys.behind + keys.samples))
    if len(found) < keys.samples:
        raise DataError(
            f"budget.samples: {keys.samples} sequences behind the {keys.behind} of the calibration were asked for; "
            f"its source has {len(found)}.",
            hint="Ask for fewer (budget.samples, calibration.samples, calibration.tokens) or add data.",
        )
    return pad(found, padding_id(tokenizer))
