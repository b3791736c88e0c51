"""What every width of every layer costs, and the widths that cost least within the budget.

<step>/scheme.json
    {"budget", "bytes": of the weights' file as they are expected, "kl": nats per token that are expected,
     "layers": {full name: scheme},
     "units": [{"layers": [...], "bits": the chosen width, "bytes": {width: count}, "kl": {width: nats per token}}]}
<step>.partial/.resume/    every layer in every width (rqat.model.tries), until the step is published
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...budget import UNQUANTIZED, Choice, Offer, Unit, allot, at_width, budget_bytes, offer
from ...contracts import Exporter, QuantizedWeight, Quantizer, Source
from ...errors import DataError, RqatError
from ...grids import bits_per_weight
from ...job import Job, log
from ...model.activations import TokenBatch
from ...model.ends import end_shapes
from ...model.families import layout_of
from ...model.layers import ENDS
from ...model.load import load_tokenizer
from ...model.repeatable import repeatable_attention
from ...model.sensitivity import measure
from ...model.tensors import narrowest
from ...model.transforms import apply_transforms
from ...model.tries import try_widths
from ...scheme import Scheme
from ...stage import Step
from ...storage import write_json
from ..calibrate.run import CALIBRATION_FILE, Counted, pad, padding_id, sequences_of
from ..quantize.run import batches_of, token_batches, transforms_of
from . import FILE, BudgetSettings, between

if TYPE_CHECKING:
    import transformers


def run(job: Job, step: Step) -> dict[str, Any]:
    """Measures, chooses, and writes the choice.

    Returns:
        the budget, the bytes and the KL that are expected, how many layers got which width, seconds of the measuring.

    Raises:
        RqatError: the budget is out of bounds; see also `load_model` and `try_widths`.
        DataError: the source has no rows behind those of the calibration.
    """
    keys = step.settings
    assert isinstance(keys, BudgetSettings)
    held_out = batches_of(*_held_out(job, step), job.device)
    model, _ = job.original.copied(job.plan.model, device=job.device, offline=job.offline)
    apply_transforms(model, list(transforms_of(job, step)))
    model.requires_grad_(False)
    layout, blocks = layout_of(model.config.model_type), model.config.num_hidden_layers
    linears = {name: _shape(model, name) for name in layout.layer_names(blocks)}
    offered = offer(
        job.plan.scheme, keys.widths, keys.ends, keys.embedding,
        linears=linears, end_shapes=end_shapes(model), layout=layout, blocks=blocks,
        skip=keys.skip, indivisible=keys.indivisible,
    )  # fmt: skip
    exporter = job.make(step, "exporter") if "exporter" in step.parts else None
    weigh = Weigher(model, offered, exporter)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    budget = budget_bytes(keys.size, parameters)
    _check_bounds(keys.size, budget, weigh, parameters)
    quantizer: Quantizer = job.make(step, "quantizer")
    batches = []
    if quantizer.needs:
        batches = token_batches(job.result_of(step.inputs["calibration"]) / CALIBRATION_FILE, job.device)
    kept = job.scratch(step)
    kept.mkdir(exist_ok=True)
    schemes = {
        bits: at_width(job.plan.scheme, bits, [name for name in ENDS if name in offered.by_width[bits]])
        for bits in offered.by_width
        if bits != UNQUANTIZED
    }
    with job.progress.task("measure widths", 1) as bar, repeatable_attention(job.device):
        chooses = {"skip": keys.skip, "indivisible": keys.indivisible}
        tries = try_widths(
            model, batches, quantizer, schemes, kept, chooses=chooses, progress=lambda share: bar.update(share / 2)
        )
        costs = measure(
            model, offered.units, held_out, tries, offered.widths, progress=lambda share: bar.update((1 + share) / 2)
        )
    apart = [unit for unit in offered.units if unit[0] in ENDS]
    options = {
        unit: [Choice(bits, weigh.unit(unit, bits), kl) for bits, kl in own.items()] for unit, own in costs.items()
    }
    chosen = allot(options, budget - weigh.rest, apart)
    return _told(job, step, budget, chosen, options, offered, weigh, parameters)


class Weigher:
    """Bytes that a file takes of every layer in every width, and of all else.

    Of exporters that give tensors, those are weighed; others are taken to store the bits that the schemes say.
    """

    def __init__(self, model: transformers.PreTrainedModel, offered: Offer, exporter: Exporter | None) -> None:
        self._offered, self._model = offered, model
        self._exporter = exporter if exporter and type(exporter).tensors is not Exporter.tensors else None
        self._known: dict[tuple[Any, ...], int] = {}
        free = {name for unit in offered.units for name in unit}
        self.rest = HEADER + sum(self._layer(name, scheme) for name, scheme in offered.pinned.items())
        tied = {id(model.get_input_embeddings().weight)}
        for key, tensor in model.state_dict(keep_vars=True).items():
            name = key.removesuffix(".weight")
            alias = name == "lm_head" and id(tensor) in tied
            if name not in free and name not in offered.pinned and not alias:
                self.rest += self._other(key, tensor)

    def unit(self, unit: Unit, bits: int) -> int:
        """Bytes of a unit's layers in one width."""
        if bits == UNQUANTIZED:
            return sum(self._other(f"{name}.weight", self._model.get_submodule(name).weight) for name in unit)
        return sum(self._layer(name, self._offered.by_width[bits][name]) for name in unit)

    def span(self) -> tuple[int, int]:
        """Bytes of the smallest and of the largest file that there may be."""
        of = [[self.unit(unit, bits) for bits in self._offered.widths(unit)] for unit in self._offered.units]
        return self.rest + sum(map(min, of)), self.rest + sum(map(max, of))

    def _layer(self, name: str, scheme: Scheme) -> int:
        shape = _shape(self._model, name)
        if self._exporter is None:
            return math.ceil(math.prod(shape) * bits_per_weight(scheme) / 8)
        if (shape, scheme) not in self._known:
            weight = QuantizedWeight(
                torch.zeros(shape, dtype=torch.uint8),
                torch.ones(shape[0], scheme.groups(shape[1])),
                torch.ones(shape[0], scheme.groups(shape[1]), dtype=torch.uint8),
                scheme=scheme,
            )
            tensors = self._exporter.tensors(LONG, weight)
            self._known[shape, scheme] = sum(tensor.nbytes + _entry(key, tensor) for key, tensor in tensors.items())
        return self._known[shape, scheme]

    def _other(self, key: str, tensor: Tensor) -> int:
        tensor = narrowest(tensor.detach().cpu())
        stored = tensor if self._exporter is None else self._exporter.other(key, tensor)
        return stored.nbytes + _entry(key, stored)


HEADER = 256
"""Bytes of a file beside its tensors and what is said of each."""

LONG = "model.layers.100.self_attn.layer_proj"
"""A layer's name as long as they come."""


def _entry(key: str, tensor: Tensor) -> int:
    """Bytes in a safetensors header that describe a tensor, at most."""
    described = {key: {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [10**10, 10**10]}}
    return len(json.dumps(described, separators=(",", ":")))


def _check_bounds(spelled: str, budget: int, weigh: Weigher, parameters: int) -> None:
    low, high = weigh.span()
    if not low <= budget <= high:
        raise RqatError(
            f"budget: {spelled} cannot be had of this model with these widths: {between(low, high, parameters)}.",
            hint="Set another size, or offer other widths (budget.widths, budget.ends).",
        )


def _shape(model: nn.Module, name: str) -> tuple[int, int]:
    rows, columns = model.get_submodule(name).weight.shape  # type: ignore[union-attr, misc]
    return int(rows), int(columns)


def _held_out(job: Job, step: Step) -> tuple[Tensor, Tensor]:
    """Sequences of the calibration's source behind those that calibrate: ids and mask, `(N, T)`.

    Raises:
        DataError: there are too few.
    """
    keys = step.settings
    assert isinstance(keys, BudgetSettings)
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


def _told(
    job: Job,
    step: Step,
    budget: int,
    chosen: Mapping[Unit, Choice],
    options: Mapping[Unit, Sequence[Choice]],
    offered: Offer,
    weigh: Weigher,
    parameters: int,
) -> dict[str, Any]:
    """Writes scheme.json; what the report tells."""
    layers = offered.mapping({unit: choice.bits for unit, choice in chosen.items()})
    count = weigh.rest + sum(choice.bytes for choice in chosen.values())
    kl = sum(choice.kl for choice in chosen.values())
    entries = [
        {
            "layers": list(unit),
            "bits": choice.bits,
            "bytes": {str(one.bits): one.bytes for one in options[unit]},
            "kl": {str(one.bits): one.kl for one in options[unit]},
        }
        for unit, choice in chosen.items()
    ]
    spelled = {name: str(scheme) for name, scheme in layers.items()}
    write_json(
        job.workdir(step) / FILE, {"budget": budget, "bytes": count, "kl": kl, "layers": spelled, "units": entries}
    )
    log.info("budget %d bytes: %d expected", budget, count)
    return {
        "budget_bytes": budget,
        "expected_bytes": count,
        "expected_bits_per_parameter": round(8 * count / parameters, 4),
        "expected_kl": kl,
        "layers_of_width": dict(_widths(chosen)),
    }


def _widths(chosen: Mapping[Unit, Choice]) -> Iterator[tuple[str, int]]:
    """How many layers got each width."""
    for bits in sorted({choice.bits for choice in chosen.values()}):
        yield str(bits), sum(len(unit) for unit, choice in chosen.items() if choice.bits == bits)
