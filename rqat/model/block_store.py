"""Finished blocks of a walk, one file each: codes, whatever else the block is made of, and reports.

An interrupted walk takes them back, and the quantized model is put together of them: none has to stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..contracts import Block, QuantizedWeight
from ..contracts.grids import PARTS
from ..errors import ModelError
from ..grids import grid_of
from ..scheme import Scheme
from ..storage import sync_file
from .checkpoint import FORMAT
from .tensor_file import Lying, TensorFile
from .tensors import narrowest, open_tensors, write_tensors

LAYOUT = 2
"""Version of a block's file: since 2, what is not quantized is in the narrowest dtype that holds it."""


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: full name.
        out_features: `O`.
        in_features: `I`.
        bits: stored bits per weight, with a 16-bit scale and a packed zero point per group.
        error: share of the squared output moved by quantization (`relative_error`), of the weights when there was no
            Hessian; None when the quantizer rescaled the layer's input but not the layer, so that nobody knows.
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


@dataclass(frozen=True)
class _Kept:
    """A quantized layer in a block's file, under its name inside the block."""

    file: TensorFile
    inside: str
    scheme: Scheme
    note: str

    @property
    def parts(self) -> dict[str, Lying]:
        return {part: self.file.tensors[f"{self.inside}.{part}"] for part in PARTS}


class FinishedLayers(Mapping[str, QuantizedWeight]):
    """Quantized layers by full name, in the order data passes them.

    Those whose block is kept in a file are read from there whenever they are asked for.
    """

    def __init__(self) -> None:
        self._found: dict[str, QuantizedWeight | _Kept] = {}
        self.others: dict[str, Lying] = {}
        """By full name, what else the blocks in files are made of."""

    def __getitem__(self, name: str) -> QuantizedWeight:
        one = self._found[name]
        if isinstance(one, QuantizedWeight):
            return one
        return QuantizedWeight.from_state({part: each.read() for part, each in one.parts.items()}, one.scheme, one.note)

    def __contains__(self, name: object) -> bool:
        return name in self._found  # a mapping's own way is to ask for the layer, which reads it

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def schemes(self) -> dict[str, Scheme]:
        """Of every layer; none is read."""
        return {name: one.scheme for name, one in self._found.items() if one.scheme is not None}

    def notes(self) -> dict[str, str]:
        """Of every layer that has one; none is read."""
        return {name: one.note for name, one in self._found.items() if one.note}

    def tensors(self) -> dict[str, Tensor | Lying]:
        """The parts of every layer, as `<layer>.<part>`; those in files are not read."""
        parts = {
            name: one.contiguous().state() if isinstance(one, QuantizedWeight) else one.parts
            for name, one in self._found.items()
        }
        return {f"{name}.{part}": each for name, own in parts.items() for part, each in own.items()}

    def add(self, block: Block, layers: Mapping[str, QuantizedWeight]) -> None:
        """Takes over layers that stay in memory, by their names inside the block."""
        self._found |= {block.full_name(name): layer for name, layer in layers.items()}

    def add_file(self, block: Block, file: TensorFile, reports: list[LayerReport]) -> None:
        """Takes over what is in a block's file."""
        inside = {report.name: report.name.removeprefix(f"{block.name}.") for report in reports}
        self._found |= {
            report.name: _Kept(file, inside[report.name], block.schemes[inside[report.name]], report.note)
            for report in reports
        }
        parts = {f"{name}.{part}" for name in inside.values() for part in PARTS}
        self.others |= {block.full_name(name): each for name, each in file.tensors.items() if name not in parts}


class BlockStore:
    """Keeps finished blocks in a folder; without one, their layers in memory.

    Only an unbroken row of blocks from the first on is taken back, since every block depends on those before.

    Attributes:
        layers: of all blocks that were found or saved.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._broken = folder is None
        self._files: dict[str, TensorFile] = {}
        self.layers = FinishedLayers()

    def forget(self) -> None:
        """Takes no further block back: the row is broken."""
        self._broken = True

    def find(self, block: Block) -> list[LayerReport] | None:
        """The reports of a finished block; None if it is not there or not whole."""
        if self._folder is None or self._broken:
            return None
        try:
            file, facts = open_tensors(self._path(block))
        except ModelError:
            return None
        if (facts.get("format"), facts.get("layout")) != (FORMAT, LAYOUT) or facts.get("schemes") != _spelled(block):
            return None
        reports = [LayerReport(**report) for report in facts["reports"]]
        self._take(block, file, reports)
        return reports

    def holds(self, block: Block) -> bool:
        """Whether a block was found or saved, in a file."""
        return block.name in self._files

    def restore(self, block: Block) -> None:
        """Makes a block what it was when it was saved; all of its tensors are overwritten."""
        file = self._files[block.name]
        with torch.no_grad():
            for name, own in _state(block).items():
                if name in file.tensors:
                    own.copy_(file.read(name))
            for name, scheme in block.schemes.items():
                layer = QuantizedWeight.from_state({part: file.read(f"{name}.{part}") for part in PARTS}, scheme, "")
                block.linear(name).weight.copy_(grid_of(scheme).decode_layer(layer))

    def save(
        self,
        block: Block,
        layers: Mapping[str, QuantizedWeight],
        others: Mapping[str, Tensor],
        reports: list[LayerReport],
    ) -> None:
        """Writes a finished block under a temporary name, flushes it to disk and renames it.

        Args:
            layers: on the CPU, by name inside the block.
            others: see `others_of`.
        """
        if self._folder is None:
            self.layers.add(block, layers)
            return
        tensors = {name: narrowest(tensor.cpu()) for name, tensor in others.items()}
        for name, layer in layers.items():
            tensors |= {f"{name}.{part}": tensor for part, tensor in layer.contiguous().state().items()}
        told = [asdict(report) for report in reports]
        facts = {"format": FORMAT, "layout": LAYOUT, "schemes": _spelled(block), "reports": told}
        path = self._path(block)
        temporary = path.with_suffix(".tmp")
        write_tensors(temporary, tensors, facts)
        sync_file(temporary)
        temporary.replace(path)
        self._take(block, TensorFile(path), reports)

    def _take(self, block: Block, file: TensorFile, reports: list[LayerReport]) -> None:
        self._files[block.name] = file
        self.layers.add_file(block, file, reports)

    def _path(self, block: Block) -> Path:
        assert self._folder is not None
        return self._folder / f"{block.name or 'end'}.safetensors"


def others_of(block: Block) -> dict[str, Tensor]:
    """What a block is made of beside the weights of its quantized layers, by name inside the block."""
    quantized = {f"{name}.weight" for name in block.names()}
    return {name: tensor for name, tensor in _state(block).items() if name not in quantized}


def _state(block: Block) -> dict[str, Tensor]:
    state: dict[str, Tensor] = block.module.state_dict()
    return state


def _spelled(block: Block) -> dict[str, str]:
    return {name: str(scheme) for name, scheme in block.schemes.items()}
