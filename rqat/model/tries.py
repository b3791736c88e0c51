"""Every layer of a model on the grid of every width that it may get, each as if it were the only one that is quantized.

<folder>/<block>.w<bits>.safetensors    codes, scales and zero points of a block's layers

Statistics are those of the model before quantization, taken once for all widths. What is there already is not made
again, so an interrupted walk goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contracts import Block, LinearStats, QuantizedWeight, Quantizer
from ..contracts.grids import PARTS
from ..grids import grid_of
from ..scheme import Scheme, Schemes
from .activations import Activations, TokenBatch
from .blocks import describe_blocks, is_decoder_layer, rounded, solved, statistics_of
from .ends import is_tied
from .tensor_file import TensorFile
from .tensors import open_tensors, write_tensors

if TYPE_CHECKING:
    import transformers

LAYERWISE = frozenset({"hessian", "saliency", "cross"})
"""What quantizers need that look at one layer at a time, and so can be tried on a layer alone."""


class Tries:
    """The quantized layers of such a folder, each read when it is asked for.

    Args:
        schemes: by width, the scheme of every layer, by full name.
    """

    def __init__(self, folder: Path, schemes: Mapping[int, Mapping[str, Scheme]]) -> None:
        self._folder = folder
        self.schemes = schemes
        self._files: dict[Path, Any] = {}

    def has(self, block: Block, bits: int) -> bool:
        """Whether a block's layers of so many bits are there."""
        return self._path(block.name, bits).is_file()

    def save(self, block: Block, bits: int, layers: Mapping[str, QuantizedWeight]) -> None:
        """Keeps a block's layers, by their names inside it."""
        path = self._path(block.name, bits)
        tensors = {
            f"{block.full_name(name)}.{part}": tensor
            for name, layer in layers.items()
            for part, tensor in layer.contiguous().state().items()
        }
        write_tensors(path.with_suffix(".tmp"), tensors, {})
        path.with_suffix(".tmp").replace(path)

    def layer(self, name: str, bits: int) -> QuantizedWeight:
        """A layer by its full name."""
        file = self._where[name, bits]
        state = {part: file.read(f"{name}.{part}") for part in PARTS}
        return QuantizedWeight.from_state(state, self.schemes[bits][name])

    def weight(self, name: str, bits: int, device: torch.device) -> Tensor:
        """Its values `(O, I)`, float32."""
        return grid_of(self.schemes[bits][name]).decode_layer(self.layer(name, bits).to(device))

    @cached_property
    def _where(self) -> dict[tuple[str, int], TensorFile]:
        """The file that holds a layer of a width."""
        found: dict[tuple[str, int], TensorFile] = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            bits, (file, _) = int(path.stem.rpartition(".w")[2]), open_tensors(path)
            found |= {(key.rpartition(".")[0], bits): file for key in file.tensors}
        return found

    def _path(self, block: str, bits: int) -> Path:
        return self._folder / f"{block or 'end'}.w{bits}.safetensors"

    @contextmanager
    def put_in(self, model: transformers.PreTrainedModel, widths: Mapping[str, int]) -> Iterator[None]:
        """The model with these layers quantized, by full name with their widths; afterwards as it was before."""
        weights = {name: model.get_parameter(f"{name}.weight") for name in widths}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        with torch.no_grad():
            for name, bits in widths.items():
                weights[name].copy_(self.weight(name, bits, weights[name].device))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(before[name])


@torch.no_grad()
def try_widths(
    model: transformers.PreTrainedModel,
    batches: Sequence[TokenBatch],
    quantizer: Quantizer,
    schemes: Mapping[int, Schemes],
    folder: Path,
    *,
    chooses: Mapping[str, Any],
    progress: Callable[[float], None] = lambda done: None,
) -> Tries:
    """Quantizes every layer to every width, from the model's own activations; the model stays as it is.

    A quantizer that does not work on layers alone (`LAYERWISE`) is stood in for by the nearest values of the grid,
    fitted for the least squared error.

    Args:
        schemes: by width, of every layer; the ends are tried where their patterns name them.
        folder: existing, where the tries are kept.
        chooses: `skip` and `indivisible`, see `blocks.describe_blocks`.
        progress: told the share of the blocks that are done.
    """
    described = {bits: describe_blocks(model, own, **chooses) for bits, own in schemes.items()}
    spelled = {bits: _schemes(blocks) for bits, blocks in described.items()}
    tries = Tries(folder, spelled)
    layerwise = quantizer.needs <= LAYERWISE
    every = {block.name: block for blocks in described.values() for block in blocks}
    order = sorted(every.values(), key=lambda block: 1 if is_decoder_layer(block) else 0 if block.name else 2)
    decoder = [(block.name, block.module) for block in order if is_decoder_layer(block)]
    needs = quantizer.needs - {"cross"} if layerwise else frozenset()
    activations = Activations(model, decoder, batches if needs else [], needs=needs)
    missing = [block for block in order if not all(_there(tries, described, block))]
    if needs and missing:
        activations.weigh(model, [block for block in order if is_decoder_layer(block)])
    first = 0 if is_decoder_layer(order[0]) else -1
    for index, block in enumerate(order, first):
        if block in missing:
            stats = None
            if layerwise:
                stats = statistics_of(block, quantizer, activations, index, tied=is_tied(model))
            _try_block(block, described, tries, quantizer, _uncrossed(quantizer, stats))
        progress((index + 1 - first) / len(order))
    return tries


def _try_block(
    block: Block,
    described: Mapping[int, Sequence[Block]],
    tries: Tries,
    quantizer: Quantizer,
    stats: dict[str, LinearStats] | None,
) -> None:
    """Keeps a block's layers in every width that names it."""
    for bits, blocks in described.items():
        own = next((other for other in blocks if other.name == block.name), None)
        if own is None or not own.inputs or tries.has(own, bits):
            continue
        made: dict[str, QuantizedWeight] = {}
        for part in [replace(own, inputs=[group]) for group in own.inputs]:
            made |= rounded(part, "") if stats is None else _alone(part, quantizer, stats)
        tries.save(own, bits, made)


def _alone(block: Block, quantizer: Quantizer, stats: dict[str, LinearStats]) -> dict[str, QuantizedWeight]:
    """What a quantizer makes of layers while the rest of the model stays as it is.

    Of one that folds scales into other modules the codes mean nothing without those: the grid's own fit stands in.
    """
    before = {name: parameter.detach().clone() for name, parameter in block.module.named_parameters()}
    made = solved(block, quantizer, stats)
    moved = [name for name, own in block.module.named_parameters() if not torch.equal(own, before[name])]
    for name in moved:
        block.module.get_parameter(name).copy_(before[name])
    return rounded(block, "") if moved else made


def _there(tries: Tries, described: Mapping[int, Sequence[Block]], block: Block) -> Iterator[bool]:
    for bits, blocks in described.items():
        if any(other.name == block.name and other.inputs for other in blocks):
            yield tries.has(block, bits)


def _schemes(blocks: Sequence[Block]) -> dict[str, Scheme]:
    return {block.full_name(name): block.schemes[name] for block in blocks for name in block.names()}


def _uncrossed(quantizer: Quantizer, stats: dict[str, LinearStats] | None) -> dict[str, LinearStats] | None:
    """With cross moments of nothing, where a quantizer asks for them: no layer before has changed an input."""
    if stats is None or "cross" not in quantizer.needs:
        return stats
    return {
        name: replace(one, cross=None if one.hessian is None else torch.zeros_like(one.hessian))
        for name, one in stats.items()
    }
