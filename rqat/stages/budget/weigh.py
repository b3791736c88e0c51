"""What a file takes of every layer in every width, and of all else; and the bounds of what a budget can be.

Of exporters that give tensors, those are weighed; others are taken to store the bits that their options say
(`bits_in_file`), or the schemes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...budget import UNQUANTIZED, Offer, Unit, budget_bytes, offer
from ...contracts import Context, Exporter, ModelShape, QuantizedWeight
from ...contracts.options import in_file
from ...errors import RqatError
from ...grids import bits_per_weight
from ...job import Job
from ...model.ends import end_shapes
from ...model.families import layout_of
from ...model.layers import HEAD
from ...model.load import load_tokenizer
from ...model.reader import seen_of
from ...model.tensors import narrowest
from ...scheme import Scheme, Schemes
from ...stage import Step
from ..measure import Measure, MeasureSettings
from . import BudgetSettings

if TYPE_CHECKING:
    import transformers


def offered_of(
    scheme: Schemes, keys: MeasureSettings, model: transformers.PreTrainedModel, *, embedding: bool = True
) -> Offer:
    """What may be chosen for a model; see `rqat.stages.measure.Measure.offer`."""
    layout, blocks = layout_of(model.config), model.config.num_hidden_layers
    return offer(
        scheme, keys.widths, keys.ends, embedding,
        linears={name: shape_of(model, name) for name in layout.layer_names(blocks)},
        end_shapes=end_shapes(model), layout=layout, blocks=blocks, skip=keys.skip, indivisible=keys.indivisible,
        together=keys.together,
    )  # fmt: skip


def shape_of(model: nn.Module, name: str) -> tuple[int, int]:
    """`(O, I)` of a layer or an end, by its full name."""
    rows, columns = model.get_parameter(f"{name}.weight").shape
    return int(rows), int(columns)


def weighed(job: Job, step: Step, model: transformers.PreTrainedModel) -> tuple[Weigher, int]:
    """What a budget step's file takes, and the budget in bytes.

    Args:
        model: as it is before quantization, behind the step's transforms.

    Raises:
        RqatError: the budget is out of bounds.
    """
    keys, measured = step.settings, job.plan.step(step.inputs[Measure.name]).settings
    assert isinstance(keys, BudgetSettings)
    assert isinstance(measured, MeasureSettings)
    offered = offered_of(job.plan.scheme, measured, model, embedding=keys.embedding)
    named = step.parts["exporter"].card.name if "exporter" in step.parts else ""
    exporter: Exporter | None = job.make(step, "exporter") if named else None
    seen = Context(model=shape_for(model, {}), tokenizer=lambda: load_tokenizer(job.plan.model, offline=job.offline))
    weigher = Weigher(model, offered, exporter, exporter.options.bytes_beside(seen) if exporter else 0)
    return weigher, weigher.budget(keys.size, named)


def shape_for(model: transformers.PreTrainedModel, schemes: Mapping[str, Scheme]) -> ModelShape:
    """What an exporter's options see of a model that is in memory.

    Args:
        schemes: of the layers that it is asked about.
    """
    linears = {name: shape_of(model, name) for name in schemes}
    return seen_of(str(model.config._name_or_path), model.config, linears)


class Weigher:
    """Bytes that a file takes.

    Args:
        beside: bytes of the file that `Options.bytes_beside` tells.

    Attributes:
        offered: the widths there are.
        rest: bytes of all that has no width to choose.
        parameters: of the model.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, offered: Offer, exporter: Exporter | None, beside: int = 0
    ) -> None:
        self.offered, self._model = offered, model
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._per_weight = in_file(exporter.options if exporter else None, bits_per_weight)
        self._exporter = exporter
        self._gives_tensors = exporter is not None and type(exporter).tensors is not Exporter.tensors
        self._known: dict[tuple[Any, ...], int] = {}
        free = {name for unit in offered.units for name in unit}
        self.rest = HEADER + beside + sum(self._layer(name, scheme) for name, scheme in offered.pinned.items())
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
        return sum(self._layer(name, self.offered.by_width[bits][name]) for name in unit)

    def span(self) -> tuple[int, int]:
        """Bytes of the smallest and of the largest file that there may be."""
        of = [[self.unit(unit, bits) for bits in self.offered.widths(unit)] for unit in self.offered.units]
        return self.rest + sum(map(min, of)), self.rest + sum(map(max, of))

    def budget(self, size: str, format_name: str = "") -> int:
        """Bytes of a spelled budget.

        Raises:
            RqatError: there is no such file of this model; `format_name` says in which format.
        """
        asked = budget_bytes(size, self.parameters)
        refused = self.offered.refusal(size, asked, self.span(), self.parameters, format_name)
        if refused is not None:
            raise RqatError(f"budget: {refused.message}", hint=refused.hint)
        return asked

    def _layer(self, name: str, scheme: Scheme) -> int:
        shape = shape_of(self._model, name)
        if self._exporter is None or not self._gives_tensors:
            return (ENTRY if self._exporter else 0) + math.ceil(
                math.prod(shape) * self._per_weight(scheme, shape[1]) / 8
            )
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

ENTRY = 128
"""Bytes in the header of a file that describe a tensor, and that fill it up, where it is not a safetensors file."""

LONG = "model.layers.100.self_attn.layer_proj"
"""A layer's name as long as they come."""


def _entry(key: str, tensor: Tensor) -> int:
    """Bytes in a safetensors header that describe a tensor, at most."""
    described = {key: {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [10**10, 10**10]}}
    return len(json.dumps(described, separators=(",", ":")))
