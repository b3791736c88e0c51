"""The widths that cost least within the budget, by what was measured of each.

<step>/scheme.json
    {"budget", "bytes": of the weights' file as they are expected, "kl": nats per token that are expected,
     "layers": {full name: scheme},
     "units": [{"layers": [...], "bits": the chosen width, "bytes": {width: count}, "kl": {width: nats per token}}]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...budget import UNQUANTIZED, Choice, Offer, Unit, allot, budget_bytes
from ...contracts import Exporter, QuantizedWeight
from ...errors import RqatError
from ...grids import bits_per_weight
from ...job import Job
from ...model.layers import ENDS, HEAD
from ...model.tensors import narrowest
from ...scheme import Scheme
from ...stage import Step
from ...storage import read_json, write_json
from ..measure import FILE as COSTS
from ..measure import Measure
from ..measure.run import offered_of, prepared, shape_of
from . import FILE, BudgetSettings, between

if TYPE_CHECKING:
    import transformers


def run(job: Job, step: Step) -> dict[str, Any]:
    """Chooses, and writes the choice.

    Returns:
        the budget, the bytes and the KL that are expected, how many layers got which width.

    Raises:
        RqatError: the budget is out of bounds.
    """
    keys = step.settings
    assert isinstance(keys, BudgetSettings)
    measured = job.plan.step(step.inputs[Measure.name])
    costs = read_json(job.result_of(measured.name) / COSTS)["units"]
    model = prepared(job, step)
    offered = offered_of(job, measured, model, embedding=keys.embedding)
    weigher = Weigher(model, offered, job.make(step, "exporter") if "exporter" in step.parts else None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    budget = budget_bytes(keys.size, parameters)
    _check_bounds(keys.size, budget, weigher, parameters)
    known = {tuple(entry["layers"]): entry["kl"] for entry in costs}
    options = {
        unit: [Choice(bits, weigher.unit(unit, bits), known[unit].get(str(bits), 0.0)) for bits in offered.widths(unit)]
        for unit in offered.units
    }
    chosen = allot(options, budget - weigher.rest, [unit for unit in offered.units if unit[0] in ENDS])
    return _told(job, step, budget, chosen, options, offered, weigher, parameters)


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
        embedding = model.get_input_embeddings().weight
        for key, tensor in model.state_dict(keep_vars=True).items():
            name = key.removesuffix(".weight")
            alias = name == HEAD and tensor is embedding
            if name not in free and name not in offered.pinned and not alias:
                self.rest += self._other(key, tensor)

    def unit(self, unit: Unit, bits: int) -> int:
        """Bytes of a unit's layers in one width."""
        if bits == UNQUANTIZED:
            return sum(self._other(f"{name}.weight", self._model.get_parameter(f"{name}.weight")) for name in unit)
        return sum(self._layer(name, self._offered.by_width[bits][name]) for name in unit)

    def span(self) -> tuple[int, int]:
        """Bytes of the smallest and of the largest file that there may be."""
        of = [[self.unit(unit, bits) for bits in self._offered.widths(unit)] for unit in self._offered.units]
        return self.rest + sum(map(min, of)), self.rest + sum(map(max, of))

    def _layer(self, name: str, scheme: Scheme) -> int:
        shape = shape_of(self._model, name)
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


def _check_bounds(spelled: str, budget: int, weigher: Weigher, parameters: int) -> None:
    low, high = weigher.span()
    if not low <= budget <= high:
        raise RqatError(
            f"budget: {spelled} cannot be had of this model with these widths: {between(low, high, parameters)}.",
            hint="Set another size, or offer other widths (budget.widths, budget.ends).",
        )


def _told(
    job: Job,
    step: Step,
    budget: int,
    chosen: Mapping[Unit, Choice],
    options: Mapping[Unit, Sequence[Choice]],
    offered: Offer,
    weigher: Weigher,
    parameters: int,
) -> dict[str, Any]:
    """Writes scheme.json; what the report tells."""
    layers = offered.mapping({unit: choice.bits for unit, choice in chosen.items()})
    count = weigher.rest + sum(choice.bytes for choice in chosen.values())
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
    return {
        "budget_bytes": budget,
        "expected_bytes": count,
        "expected_bits_per_parameter": round(8 * count / parameters, 4),
        "expected_kl": kl,
        "layers": _by_scheme(spelled),
    }


def _by_scheme(spelled: Mapping[str, str]) -> dict[str, list[str]]:
    """Full names of layers by the spelling of their scheme."""
    return {scheme: [name for name, own in spelled.items() if own == scheme] for scheme in sorted({*spelled.values()})}
