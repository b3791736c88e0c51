"""Finished blocks of an interrupted walk, one file each: codes, whatever else the quantizer changed, and reports."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..contracts import Block, QuantizedWeight
from ..contracts.grids import PARTS
from ..errors import ModelError
from ..grids import grid_of
from .checkpoint import FORMAT
from .tensors import read_tensors, write_tensors


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: full name.
        out_features: `O`.
        in_features: `I`.
        bits: stored bits per weight, with a 16-bit scale and a packed zero point per group.
        error: share of the squared output moved by quantization (`blocks.relative_error`), of the weights when there
            was no Hessian; None when the quantizer rescaled the layer's input but not the layer, so that nobody knows.
        seconds: wall time of its block, statistics included.
        note: the quantizer's remark.
    """

    name: str
    out_features: int
    in_features: int
    bits: float
    error: float | None
    seconds: float
    note: str


class BlockStore:
    """Keeps finished blocks in a folder; without one it keeps nothing.

    Only an unbroken row of blocks from the first on is taken back, since every block depends on those before.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._broken = folder is None

    def forget(self) -> None:
        """Takes no further block back: the row is broken."""
        self._broken = True

    def load(self, block: Block) -> tuple[dict[str, QuantizedWeight], list[LayerReport]] | None:
        """Puts a finished block back into the model; None, and the block untouched, if it is not there or not whole."""
        if self._folder is None or self._broken:
            return None
        try:
            tensors, facts = read_tensors(self._path(block))
        except ModelError:
            return None
        if facts.get("format") != FORMAT or facts.get("schemes") != _spelled(block):
            return None
        reports = [LayerReport(**report) for report in facts["reports"]]
        layers = {}
        for report in reports:
            name = report.name.removeprefix(f"{block.name}.")
            state = {part: tensors.pop(f"{name}.{part}") for part in PARTS}
            layers[name] = QuantizedWeight.from_state(state, block.schemes[name], report.note)
        with torch.no_grad():
            for name, tensor in tensors.items():
                block.module.get_parameter(name).copy_(tensor)
            for name, layer in layers.items():
                block.linear(name).weight.copy_(grid_of(block.schemes[name]).decode_layer(layer))
        return layers, reports

    def save(self, block: Block, layers: dict[str, QuantizedWeight], reports: list[LayerReport]) -> None:
        """Writes a finished block under a temporary name, flushes it to disk and renames it."""
        if self._folder is None:
            return
        quantized = {f"{name}.weight" for name in layers}
        tensors = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in block.module.named_parameters()
            if name not in quantized
        }
        for name, layer in layers.items():
            tensors |= {f"{name}.{part}": tensor for part, tensor in layer.contiguous().state().items()}
        facts = {"format": FORMAT, "schemes": _spelled(block), "reports": [asdict(report) for report in reports]}
        path = self._path(block)
        temporary = path.with_suffix(".tmp")
        write_tensors(temporary, tensors, facts)
        handle = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)

    def _path(self, block: Block) -> Path:
        assert self._folder is not None
        return self._folder / f"{block.name or 'end'}.safetensors"


def _spelled(block: Block) -> dict[str, str]:
    return {name: str(scheme) for name, scheme in block.schemes.items()}
